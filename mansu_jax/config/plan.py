"""Devices that a run is planned for."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field, _check = fields.field, fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
  """For which devices a run is planned."""

  topology: str = _field(
      'v5e:2x4', 'TPU slice, which need not be there: v5e, v5p or v6e and its'
      ' shape, such as v5p:2x2x4; or `this`, the devices that are there.')
  memory_gib: float = _field(
      0.0, 'Memory of a device in GiB, if not that of the topology; to plan for'
      ' 80 GB, say (74.5: of a GPU JAX takes three quarters, unless'
      ' XLA_PYTHON_CLIENT_MEM_FRACTION says more).')

  def __post_init__(self):
    fields.check_fields(self, 'plan')
    _check(self.memory_gib >= 0,
           f'--plan_memory_gib={self.memory_gib} is less than nothing; wanted'
           ' GiB of a device, or 0 for what the topology has. Correct it.')
