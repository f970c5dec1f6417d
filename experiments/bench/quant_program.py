"""Compiles the quantizers for a TPU, without a TPU, and prints their costs.

  python -m experiments.bench.quant_program [--topology=v5e:2x4]

Compiles fake quantization of one matrix for one chip of a topology. The table
gives the number of fusions, temporary memory, memory traffic relative to the
size of the matrix, and the compiler's estimate of the time, and compares them
with a copy. Requires `pip install libtpu`, in a separate environment, since
libtpu slows every start of JAX.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import os
import re

from absl import app
from absl import flags
import jax
from jax.experimental import topologies
import jax.numpy as jnp

from mansu_jax import quant
from mansu_jax.quant import blocking

_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x4', 'TPU topology.')
_SCHEMES = flags.DEFINE_list(
    'schemes', ['nf4', 'fp4', 'nf4_dq', 'int8', 'int4_g128', 'q4_0', 'q4_1',
                'q8_0'], 'Schemes to compile.')
_SHAPE = (4096, 14336)  # [D, F] of Llama 8B.
_FUSION = re.compile(r'= \S+ fusion\(')


def _row(name: str, fn: Callable[..., jax.Array], device: jax.Device) -> str:
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
  """Compiles all schemes and prints a table."""
  del argv
  os.environ.update(
      TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-8',
      TPU_WORKER_ID='0', TPU_WORKER_HOSTNAMES='localhost')
  jax.config.update('jax_platforms', 'cpu')
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
