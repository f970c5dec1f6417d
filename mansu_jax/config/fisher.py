"""Configuration of the Fisher information."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=fields.TRAINING_MODES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FisherConfig:
  """Diagonal Fisher information of the retain set, on the circuit."""

  labels: str = _field(
      'data', 'Labels of the Fisher information. data: those of the retain set'
      ' (empirical Fisher); model: sampled from the model (true Fisher).',
      ('data', 'model'))
  sequences: int = _field(
      96, 'Largest number of retain sequences to average over.')
  chunk: int = _field(
      4, 'Largest number of per-example gradients in memory at once. A device'
      ' with little memory gets smaller chunks.')

  def __post_init__(self):
    fields.check_fields(self, 'fisher')
    fields.check_minimum(self, 'fisher', 1, 'sequences', 'chunk')
