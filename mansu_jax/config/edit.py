"""Projection and magnitude floor."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field, _check = fields.field, fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditConfig:
  """The optax chain: projection and magnitude floor."""

  projection: str = _field(
      'fisher', 'Null-space projection of the updates.', ('fisher', 'none'))
  fisher_quantile: float = _field(
      0.5, 'Coordinates under this quantile of their leaf may move.')
  floor: str = _field(
      'hold', 'Magnitude floor: hold (error-feedback dead zone), lift (raise'
      ' to the floor at the last step, as in the paper), none.',
      ('hold', 'lift', 'none'))
  landing: str = _field(
      'centre', 'Where a moved weight lands: on its new code\'s value, or just'
      ' past the boundary.', ('centre', 'boundary'))

  def __post_init__(self):
    fields.check_fields(self, 'edit')
    _check(0 < self.fisher_quantile <= 1, '--edit_fisher_quantile='
           f'{self.fisher_quantile} is outside (0, 1].')
