"""Programs that the TPU compiler makes of the quantizers, without a TPU.

  python -m experiments.bench.quant_program [--topology=v5e:2x4]

Compiles quantizing and decoding of one matrix for one chip of a TPU slice. The
table gives, beside a copy of the same bytes: fusions, temporary memory, bytes
accessed relative to the matrix, and the compiler's time estimate. It needs `pip
install libtpu`, best in its own environment, because libtpu slows every start
of JAX.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import re

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
_SHAPE = (4096, 14336)  # [D, F] of Llama 8B.
_FUSION = re.compile(r'= \S+ fusion\(')


def _row(name: str, fn: Callable[..., jax.Array], device: jax.Device) -> str:
  """Row of the table for one program."""
  weights = jax.ShapeDtypeStruct(
      _SHAPE, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
  program = jax.jit(fn).lower(weights).compile()
  text, cost = program.as_text(), program.cost_analysis() or {}
  size = weights.size * weights.dtype.itemsize
  entry = text[text.index('ENTRY'):]
  temporary = program.memory_analysis().temp_size_in_bytes
  return (f'| {name} | {len(_FUSION.findall(entry))} | {temporary / 1e6:.0f} MB'
          f' | {cost.get("bytes accessed", 0) / size:.2f}'
          f' | {cost.get("optimal_seconds", 0) * 1e3:.2f} ms |')


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
  print(_row('copy', lambda x: x + 1, device))
  for name in _SCHEMES.value:
    print(_row(name, functools.partial(
        blocking.fake_quantize, scheme=quant.get(name).ordinary(),
        layout=layout), device))


if __name__ == '__main__':
  app.run(main)
