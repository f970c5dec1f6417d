"""Configuration of the device mesh."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=fields.MODES)
_RUNNING_MODES = tuple(mode for mode in fields.MODES if mode != 'plan')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Axes of the mesh; the product of their sizes is the number of devices."""

  data: int = _field(
      1, 'Devices along the mesh axis `data`, which splits the rows of a batch'
      ' and replicates the weights. -1: all remaining devices.')
  fsdp: int = _field(
      -1, 'Devices along the mesh axis `fsdp`, which splits the rows of a'
      ' batch, and the weights along the model width. -1: all remaining'
      ' devices.')
  tensor: int = _field(
      1, 'Devices along the mesh axis `tensor`, which splits the weights along'
      ' heads, neurons and vocabulary. -1: all remaining devices.')
  distributed: bool = _field(
      False, 'Run as one of several processes, each with devices of its own, by'
      ' jax.distributed. See docs/scaling.md.', modes=_RUNNING_MODES)
  join_seconds: int = _field(
      300, 'Seconds to wait for the other processes at the start. Does not'
      ' affect results.', modes=_RUNNING_MODES)

  def __post_init__(self):
    fields.check_fields(self, 'mesh')
    sizes = self.data, self.fsdp, self.tensor
    fields.check(
        all(size == -1 or size > 0 for size in sizes) and sizes.count(-1) < 2,
        f'--mesh_data={self.data}, --mesh_fsdp={self.fsdp} and --mesh_tensor='
        f'{self.tensor} make no mesh: mesh axes must be positive; at most one'
        ' may be -1, for the remaining devices.')
    fields.check_minimum(self, 'mesh', 1, 'join_seconds')
