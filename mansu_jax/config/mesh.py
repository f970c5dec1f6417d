"""Arrangement of the devices."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field, _check = fields.field, fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """How the devices are arranged; their product is their number."""

  data: int = _field(
      1, 'Devices over which rows of a batch are split, with whole weights on'
      ' each; -1: what is left.')
  fsdp: int = _field(
      -1, 'Devices over which rows, and weights along the model width, are'
      ' split; -1: what is left.')
  tensor: int = _field(
      1, 'Devices over which weights are split along heads, neurons and'
      ' vocabulary; -1: what is left.')
  distributed: bool = _field(
      False, 'Join the other processes of the run, which have devices of their'
      ' own (jax.distributed; BUILD.md, Several processes).')
  join_seconds: int = _field(
      300, 'Seconds that all processes may take to come; it changes no figure.')

  def __post_init__(self):
    fields.check_fields(self, 'mesh')
    sizes = self.data, self.fsdp, self.tensor
    _check(all(size == -1 or size > 0 for size in sizes)
           and sizes.count(-1) < 2,
           f'--mesh_data={self.data}, --mesh_fsdp={self.fsdp} and --mesh_tensor'
           f'={self.tensor} are no mesh; wanted numbers of devices, at most one'
           ' of them -1 for what is left.')
    fields.check_least(self, 'mesh', 1, 'join_seconds')
