"""Times the round trip of quantizing and decoding, against other libraries.

  python -m experiments.bench.quant [--weights=67108864] [--out=FILE.json]

All contenders process the same float32 weights in one process, alternating over
several rounds: a plain copy, which bounds the speed of any quantizer; this
library's fake quantization of input-first weights and its packed codes; and, if
installed (`pip install bitsandbytes torchao qwix`), other libraries. The
fastest round counts; the table also gives the median, and the memory that our
programs need beside input and output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import time
from typing import Any, NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax.quant import blocking
from mansu_jax.quant import packing

_WEIGHTS = flags.DEFINE_integer('weights', 2**26, 'Size, in rows of 8,192.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Number of rounds.')
_SCHEMES = flags.DEFINE_list(
    'schemes', ['nf4', 'fp4', 'nf4_dq', 'int8', 'int4_g128', 'q4_0', 'q4_1',
                'q8_0', 'q4_k', 'q6_k'], 'Schemes of this library to time.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for the results.')
_COLUMNS = 8192
_BLOCK = 64


class Contender(NamedTuple):
  """A round trip of all weights.

  Attributes:
    name: name in the table.
    weights: number of weights.
    run: performs the round trip and waits for its end.
    temporary: bytes beside input and output; None if unknown.
  """

  name: str
  weights: int
  run: Callable[[], Any]
  temporary: int | None = None


def _ours(x: jax.Array, names: list[str]) -> Iterator[Contender]:
  """Copy, fake quantization and packed round trip, compiled in advance."""
  yield _compiled('copy (jax)', lambda a: a + 1, x)
  for name in names:
    run = functools.partial(
        blocking.fake_quantize, scheme=quant.get(name).ordinary(),
        layout=quant.BlockLayout(memory='DF', out='F', inp='D'))
    yield _compiled(f'{name}, simulator', run, x)
  for name in (n for n in names if n.startswith(('nf4', 'fp4'))):
    scheme = quant.get(name)
    trip = lambda a, s=scheme: packing.unpack(
        jax.lax.optimization_barrier(packing.pack(a, s)), s, a.shape)
    yield _compiled(f'{name}, packed and unpacked', trip, x)


def _compiled(name: str, fn: Callable[..., Any], x: jax.Array) -> Contender:
  program = jax.jit(fn).lower(x).compile()
  memory = program.memory_analysis()
  return Contender(
      name, x.size, lambda: jax.block_until_ready(program(x)),
      memory.temp_size_in_bytes if memory else None)


def _others(x: np.ndarray) -> Iterator[Contender]:
  """The other libraries, if installed; NF4 in blocks of 64."""
  out = np.empty_like(x)
  yield Contender('copy (numpy)', x.size, lambda: np.copyto(out, x))
  if importlib.util.find_spec('bitsandbytes'):
    yield from _bitsandbytes(x)
  if importlib.util.find_spec('torchao'):
    yield from _torchao(x)
  if importlib.util.find_spec('qwix'):
    yield from _qwix(x)


def _bitsandbytes(x: np.ndarray) -> Iterator[Contender]:
  from bitsandbytes import functional  # pylint: disable=g-import-not-at-top
  import torch  # pylint: disable=g-import-not-at-top

  def trip(flat, kind, threads):
    torch.set_num_threads(threads)
    packed, state = functional.quantize_4bit(
        flat, blocksize=_BLOCK, quant_type=kind)
    return functional.dequantize_4bit(packed, state)

  flat = torch.from_numpy(x.reshape(-1))
  for kind in ('nf4', 'fp4'):
    for threads in {1, os.cpu_count()}:
      yield Contender(
          f'bitsandbytes {kind}, {threads} thread{"s" * (threads > 1)}',
          x.size, functools.partial(trip, flat, kind, threads))


def _torchao(x: np.ndarray) -> Iterator[Contender]:
  # pylint: disable=g-import-not-at-top
  import torch
  from torchao.quantization.quantize_.workflows.nf4 import nf4_tensor

  part = torch.from_numpy(x[:len(x) // 16])  # Needs 16 times its memory.

  def trip(threads):
    torch.set_num_threads(threads)
    return nf4_tensor.to_nf4(part, _BLOCK, 256).get_original_weight()

  for threads in {1, os.cpu_count()}:
    yield Contender(
        f'torchao nf4 (1/16), {threads} thread{"s" * (threads > 1)}',
        part.numel(), functools.partial(trip, threads))


def _qwix(x: np.ndarray) -> Iterator[Contender]:
  from qwix._src.core import qarray  # pylint: disable=g-import-not-at-top

  how = qarray.HowToQuantize(
      qtype='nf4', channelwise_axes=(0,), tiled_axes={1: _BLOCK},
      calibration_method='absmax')
  yield _compiled(
      'qwix nf4', lambda a: qarray.dequantize(qarray.quantize(a, how)),
      jnp.asarray(x))


def _measure(contenders: list[Contender], rounds: int) -> list[dict[str, Any]]:
  for contender in contenders:  # Warms up caches and thread pools.
    contender.run()
  seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
  for _ in range(rounds):
    for contender in contenders:
      start = time.perf_counter()
      contender.run()
      seconds[contender.name].append(time.perf_counter() - start)
  return [{
      'name': c.name, 'weights': c.weights, 'seconds': min(seconds[c.name]),
      'median_seconds': statistics.median(seconds[c.name]),
      'weights_per_second': c.weights / min(seconds[c.name]),
      'temporary_bytes': c.temporary} for c in contenders]


def _environment() -> dict[str, Any]:
  found = {}
  for name in ('jax', 'torch', 'bitsandbytes', 'torchao', 'qwix'):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found | {
      'device': jax.devices()[0].device_kind, 'backend': jax.default_backend(),
      'cores': os.cpu_count(), 'machine': platform.machine()}


def _table(results: list[dict[str, Any]]) -> Iterator[str]:
  copy = next(r for r in results if r['name'] == 'copy (jax)')
  yield ('| round trip | M weights/s | of the median | times the copy | beside'
         ' input and output |')
  yield '|---|---|---|---|---|'
  for r in results:
    rates = [r['weights'] / r[k] / 1e6 for k in ('seconds', 'median_seconds')]
    times = copy['weights_per_second'] / r['weights_per_second']
    held = r['temporary_bytes']
    yield (f'| {r["name"]} | {rates[0]:.1f} | {rates[1]:.1f} | {times:.1f} |'
           f' {"–" if held is None else f"{held / 1e6:.0f} MB"} |')


def main(argv: list[str]) -> None:
  """Measures and prints."""
  del argv
  rows = _WEIGHTS.value // _COLUMNS
  x = np.random.default_rng(0).standard_normal(
      (rows, _COLUMNS), np.float32) * np.float32(0.02)
  contenders = [*_others(x), *_ours(jnp.asarray(x), _SCHEMES.value)]
  results = _measure(contenders, _ROUNDS.value)
  print(f'{x.size:,} float32 weights, {_environment()}')
  print('\n'.join(_table(results)))
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(
        {'environment': _environment(), 'results': results}, indent=1) + '\n',
        encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
