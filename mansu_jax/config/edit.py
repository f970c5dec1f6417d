"""Configuration of the edit: null-space projection and magnitude floor."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=fields.TRAINING_MODES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditConfig:
  """The chain of optax transforms that edits the circuit's weights."""

  projection: str = _field(
      'fisher', 'Null-space projection of the updates. fisher: freeze the'
      ' coordinates with high Fisher information on the retain set; none: no'
      ' projection.', ('fisher', 'none'))
  fisher_quantile: float = _field(
      0.75, 'Quantile of the Fisher information of a leaf, in (0, 1].'
      ' Coordinates below it may change.')
  floor: str = _field(
      'hold', 'Magnitude floor, which makes edits survive quantization. hold:'
      ' accumulate updates until a weight reaches its next quantization code'
      ' (error feedback); lift: raise smaller edits to the floor at the last'
      ' step, as in the paper; none: no floor.', ('hold', 'lift', 'none'))
  landing: str = _field(
      'centre', 'New value of a weight that the floor moves. centre: the value'
      ' of its new code; boundary: just beyond the boundary of its old code.',
      ('centre', 'boundary'))

  def __post_init__(self):
    fields.check_fields(self, 'edit')
    fields.check_share(self, 'edit', 'fisher_quantile')
