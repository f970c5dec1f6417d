"""Double quantization: 8-bit scales, as in bitsandbytes.

The mean of a matrix's scales is subtracted, and the differences are quantized
in blocks of 256 to a code book of 256 values, denser near zero. Results equal
those of bitsandbytes 0.50.2 on a CPU to the last bit: the mean adds in torch's
order, and codes come from a table of 65,536 entries, not from the nearest
value.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise

BLOCK = 256
_ENTRIES = 1 << 16  # Entries of the table of codes.
_LANES, _STREAMS = 8, 4  # Vectorization of torch's sum.
_f32 = np.float32


class NestedScales(NamedTuple):
  """Scales [..., n] as stored."""

  code: jax.Array  # uint8 [..., n], indices into `code_book()`
  absmax: jax.Array  # float32 [..., ceil(n / 256)]
  offset: jax.Array  # float32 [...], mean of the scales


@functools.cache
def code_book() -> np.ndarray:
  """The "dynamic" code book: float32 [256], ascending.

  Source: Dettmers 2016, "8-Bit Approximations for Parallelism in Deep
  Learning" (arXiv 1511.04561); bitsandbytes' `create_dynamic_map`.
  """
  positive = [_f32(1.0)]
  for i in range(7):
    ends = _linspace(2**i + 1)
    positive += list(_f32(10.0 ** (i - 6)) * ((ends[:-1] + ends[1:]) / _f32(2)))
  positive = np.array(positive, np.float32)
  return np.sort(np.concatenate([-positive[1:], [0], positive])).astype(_f32)


def _linspace(n: int) -> np.ndarray:
  """torch.linspace(0.1, 1, n) in float32, which counts from both ends."""
  step = np.float64((_f32(1) - _f32(0.1)) / _f32(n - 1))
  i = np.arange(n)
  return np.where(
      i < n // 2, _f32(0.1) + step * i, 1 - step * (n - 1 - i)).astype(_f32)


@functools.cache
def _table() -> np.ndarray:
  """uint8 [65536]: the code nearest to -1 + 2 i / 65535."""
  values = code_book().astype(np.float64)
  midpoints = (values[1:] + values[:-1]) / 2
  return np.searchsorted(
      midpoints, -1 + 2 * np.arange(_ENTRIES) / (_ENTRIES - 1)).astype(np.uint8)


def quantize(scales: jax.Array) -> NestedScales:
  """Quantizes the scales of each matrix.

  Args:
    scales: float32 [..., n]; the last axis holds the scales of one matrix.
  """
  offset = torch_mean(scales)
  blocks = blockwise.split(scales - offset[..., None], BLOCK)
  absmax = blockwise.absmax(blocks)
  value = blocks * (1 / jnp.where(absmax == 0, 1, absmax))
  position = blockwise.rounded((value + 1) * _f32(_ENTRIES / 2 - 0.5))
  index = jnp.floor(position + _f32(0.5)).astype(jnp.int32)
  code = jnp.asarray(_table())[jnp.clip(index, 0, _ENTRIES - 1)]
  return NestedScales(
      blockwise.join(code, scales.shape[-1]), absmax[..., 0, 0], offset)


def dequantize(scales: NestedScales) -> jax.Array:
  """The float32 scales [..., n] with which the matrix is decoded."""
  n = scales.code.shape[-1]
  absmax = jnp.repeat(scales.absmax, BLOCK, axis=-1)[..., :n]
  product = jnp.asarray(code_book())[scales.code.astype(jnp.int32)] * absmax
  return blockwise.rounded(product) + scales.offset[..., None]


def fake_quantize(scales: jax.Array) -> jax.Array:
  """Quantizes and decodes scales [..., n]."""
  return dequantize(quantize(scales))


def torch_mean(x: jax.Array) -> jax.Array:
  """Mean over the last axis, added in the order of torch on one CPU thread.

  float32 addition depends on the order, and a mean with other bits shifts every
  decoded scale. The order is that of `cascade_sum` in torch 2.13: 8 lanes in 4
  streams. Above 32,768 scales, torch divides the sum among its threads; this
  function gives the result of one thread.

  Args:
    x: float32 [..., n], n >= 1.
  """
  n = x.shape[-1]
  x = jnp.moveaxis(x, -1, 0)  # [n, ...]
  lanes = _LANES if n >= _LANES else 1
  vectors = x[:n // lanes * lanes].reshape(-1, lanes, *x.shape[1:])
  full = vectors.shape[0] // _STREAMS
  streams = _cascade(vectors[:full * _STREAMS].reshape(
      full, _STREAMS, *vectors.shape[1:]))
  first = streams[0]
  for vector in vectors[full * _STREAMS:]:  # Three at most.
    first = first + vector
  by_lane = first + streams[1] + streams[2] + streams[3]
  total = jnp.zeros(x.shape[1:], jnp.float32)
  for one in (*x[vectors.shape[0] * lanes:], *by_lane):
    total = total + one
  return blockwise.divide(total, n)


def _cascade(x: jax.Array) -> jax.Array:
  """Sum over the first axis in the order of torch's `multi_row_sum`."""
  power = max(4, math.ceil(math.log2(max(x.shape[0], 1))) // 4)
  step, remainders = 1 << power, []
  for _ in range(3):  # Levels with chunks of step, step**2 and step**3.
    chunks = x.shape[0] // step
    remainders.append(_sequential_sum(x[chunks * step:]))
    x = _sequential_sum(jnp.moveaxis(
        x[:chunks * step].reshape(chunks, step, *x.shape[1:]), 1, 0))
  remainders.append(_sequential_sum(x))
  total = remainders[0]
  for remainder in remainders[1:]:
    total = total + remainder
  return total


def _sequential_sum(x: jax.Array) -> jax.Array:
  """Sum over the first axis, one entry after the other."""
  zero = jnp.zeros(x.shape[1:], x.dtype)
  if not x.shape[0]:
    return zero
  return jax.lax.fori_loop(0, x.shape[0], lambda i, s: s + x[i], zero)
