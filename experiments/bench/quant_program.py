"""Programs that the TPU compiler makes of the quantizers, without a TPU.

  python -m experiments.bench.quant_program [--topology=v5e:2x4] [--out=FILE]

Compiles quantizing and decoding of one matrix for one chip of a TPU slice. The
table gives, beside a copy of the same bytes: fusions, temporary memory, bytes
accessed relative to the matrix, and the compiler's time estimate. It needs `pip
install libtpu`, best in its own environment, because libtpu slows every start
of JAX.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import importlib.metadata
import json
import pathlib
import re
from typing import Any

from absl import app
from absl import flags
import jax
from jax.experimental import topologies
import jax.numpy as jnp

from mansu_jax import quant
from mansu_jax.planning import topology
from mansu_jax.quant import blocking

_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x4', 'TPU slice.')
_SCHEMES = flags.DEFINE_list(
    'schemes', ['nf4', 'fp4', 'nf4_dq', 'int8', 'int4_g128', 'q4_0', 'q4_1',
                'q8_0'], 'Schemes to compile.')
_OUT = flags.DEFINE_string('out', '', 'JSON file to write.')
_SHAPE = (4096, 14336)  # [D, F] of Llama 8B.
_FUSION = re.compile(r'= \S+ fusion\(')


def _measure(
    fn: Callable[..., jax.Array], device: jax.Device) -> dict[str, Any]:
  """What the compiler says of one program."""
  weights = jax.ShapeDtypeStruct(
      _SHAPE, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
  program = jax.jit(fn).lower(weights).compile()
  text, cost = program.as_text(), program.cost_analysis() or {}
  size = weights.size * weights.dtype.itemsize
  entry = text[text.index('ENTRY'):]
  return {
      'fusions': len(_FUSION.findall(entry)),
      'temporary': program.memory_analysis().temp_size_in_bytes,
      'bytes_over_weights': cost.get('bytes accessed', 0) / size,
      'seconds': cost.get('optimal_seconds', 0)}


def _row(name: str, found: dict[str, Any]) -> str:
  return (f'| {name} | {found["fusions"]} | {found["temporary"] / 1e6:.0f} MB'
          f' | {found["bytes_over_weights"]:.2f}'
          f' | {found["seconds"] * 1e3:.2f} ms |')


def main(argv: list[str]) -> None:
  """Compiles all programs and prints a table."""
  del argv
  topology.prepare(_TOPOLOGY.value)
  device = topologies.get_topology_desc(
      platform='tpu', topology_name=_TOPOLOGY.value).devices[0]
  layout = quant.BlockLayout(memory='DF', out='F', inp='D')
  print(f'{_SHAPE} float32 for {_TOPOLOGY.value}')
  print('| program | fusions | temporary | bytes / weights | estimate |')
  print('|---|---|---|---|---|')
  programs = {'copy': lambda x: x + 1} | {name: functools.partial(
      blocking.fake_quantize, scheme=quant.get(name).ordinary(), layout=layout)
                                          for name in _SCHEMES.value}
  rows = {}
  for name, fn in programs.items():
    rows[name] = _measure(fn, device)
    print(_row(name, rows[name]))
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps({
        'topology': _TOPOLOGY.value, 'shape': _SHAPE, 'jax': jax.__version__,
        'libtpu': importlib.metadata.version('libtpu'), 'programs': rows,
    }, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
