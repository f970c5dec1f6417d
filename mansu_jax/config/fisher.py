"""The diagonal Fisher information of the retain set."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field = fields.field


@dataclasses.dataclass(frozen=True, kw_only=True)
class FisherConfig:
  """Diagonal Fisher information of the retain set, on the circuit."""

  labels: str = _field(
      'data', 'data: empirical Fisher; model: labels drawn from the model'
      ' (true Fisher).', ('data', 'model'))
  sequences: int = _field(128, 'Retain sequences it is averaged over.')
  chunk: int = _field(
      4, 'Per-example gradients live at once, at most: fewer where a device has'
      ' less memory.')

  def __post_init__(self):
    fields.check_fields(self, 'fisher')
    fields.check_least(self, 'fisher', 1, 'sequences', 'chunk')
