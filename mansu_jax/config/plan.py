"""Configuration of a plan."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=('plan',))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
  """Devices that a run is planned for."""

  topology: str = _field(
      'v5e:2x4', 'Devices to plan for: a TPU slice, which need not be present'
      ' (v5e, v5p or v6e and its shape, such as v5p:2x2x4), or `this` for the'
      ' devices of this machine.')
  memory_gib: float = _field(
      0.0, 'Memory of a device in GiB; 0: the memory of the topology. JAX uses'
      ' three quarters of a GPU\'s memory unless XLA_PYTHON_CLIENT_MEM_FRACTION'
      ' says otherwise. An 80 GB GPU has 74.5 GiB.')

  def __post_init__(self):
    fields.check_fields(self, 'plan')
    fields.check(
        self.memory_gib >= 0, f'--plan_memory_gib={self.memory_gib} must be >='
        ' 0: GiB of a device, or 0 for the memory of the topology.')
