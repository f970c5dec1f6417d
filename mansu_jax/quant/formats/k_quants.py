"""The K formats of llama.cpp, Q4_K and Q6_K, whose scales a search finds.

A row is cut into super-blocks of 256. Each consists of sub-blocks whose scales
are stored as integers times a float16. Scales are fitted to all weights of a
sub-block by least squares, so freezing some weights does not fix them: the
magnitude floor cannot guarantee edits under these schemes.

Results equal those of llama.cpp without an importance matrix
(`quantize_row_q4_K_ref`, `quantize_row_q6_K_ref`), built for plain x86-64, to
the last bit: sums have its order, and no product is fused with a sum. The
`gguf` package reads these formats but does not write them.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise
from mansu_jax.quant import scheme
from mansu_jax.quant.formats import gguf_schemes

SUPER_BLOCK = 256
_CHUNK = 1024  # Number of sub-blocks to search at once.
_LEAST = np.float32(1e-15)  # llama.cpp's GROUP_MAX_EPS; less counts as zeros.
# Candidate codes of the largest weight, each rounded as in C.
_tenths = lambda i: np.float32(0.1) * np.asarray(i, np.float32)
_OFFSET_STEPS = (np.float32(-1) + _tenths(range(21))) + np.float32(15)
_SIGNED_STEPS = np.float32(32) + _tenths([0, *range(-9, 0), *range(1, 10)])


class Stored(NamedTuple):
  """Scales of super-blocks [..., S] and their n sub-blocks [..., S, n]."""

  scale: jax.Array  # float32 [..., S], a float16 value
  scales: jax.Array  # int32 [..., S, n]
  offset: jax.Array | None = None  # float32 [..., S], a float16 value
  offsets: jax.Array | None = None  # int32 [..., S, n]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KScheme(scheme.Scheme):
  """A K format.

  Attributes:
    name: name in flags and records.
    fallback: scheme that llama.cpp uses for a matrix whose rows are not a
      multiple of 256 weights.
  """

  fallback: scheme.Scheme

  @property
  def holds_scale(self):
    return False

  @property
  def description(self):
    return {
        'code_book': f'{self.name.upper()} (llama.cpp); {self.fallback.name}'
                     f' where rows are no multiple of {SUPER_BLOCK}',
        'block': self.sub_block, 'double_quantization': True}

  def for_columns(self, columns):
    if columns % SUPER_BLOCK:
      return self.fallback.for_columns(columns)
    return self

  @property
  @abc.abstractmethod
  def sub_block(self) -> int:
    """Number of weights that share a scale."""

  @abc.abstractmethod
  def search(self, blocks: jax.Array) -> Stored:
    """The stored scales of blocks [..., S * n, sub_block, 1]."""

  def block_length(self, columns):
    return self.sub_block

  def block_size(self, columns):
    return None  # A super-block holds several sub-blocks of a row.

  def split(self, rows):
    return blockwise.split(rows, self.sub_block)

  def join(self, blocks, shape):
    return blocks.reshape(shape)

  def fit(self, blocks, shape):
    del shape
    stored = self.search(blocks)
    by_block = lambda one, many: (
        one[..., None] * many.astype(jnp.float32)).reshape(
            *blocks.shape[:-2], 1, 1)
    scale = by_block(stored.scale, stored.scales)
    offset = (None if stored.offset is None
              else -by_block(stored.offset, stored.offsets))
    return scheme.Shared(scale, offset)

  def sets_scale(self, blocks, shared):
    return jnp.zeros(blocks.shape, bool)  # All weights set it together.

  def level(self, code):
    return code

  def by_super_block(self, x: jax.Array) -> jax.Array:
    """[..., S * n] to [..., S, n]."""
    return x.reshape(*x.shape[:-1], -1, SUPER_BLOCK // self.sub_block)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Q4K(KScheme):
  """4 bits: sub-blocks of 32 with a scale and an offset of 6 bits each."""

  @property
  def sub_block(self):
    return 32

  def search(self, blocks):
    scale, least = _by_chunks(_fit_offset, blocks)
    scale, least = self.by_super_block(scale), self.by_super_block(least)
    stored = lambda largest: gguf_schemes.float16(
        blockwise.divide(largest, 63))
    levels = lambda x, largest: jnp.minimum(
        _nearest(_ratio(63.0, largest)[..., None] * x), 63)
    most, deepest = (jnp.maximum(jnp.max(x, -1), 0) for x in (scale, least))
    return Stored(stored(most), levels(scale, most),
                  stored(deepest), levels(least, deepest))

  def encode_at(self, values, shared):
    code = _nearest(_divide_by(values - shared.offset, shared.scale))
    code = jnp.where(shared.scale == 0, 0, code)
    return jnp.clip(code, 0, 15).astype(jnp.uint8)

  def decode(self, code, shared):
    # Exact product of 4 and 17 bits: a fused multiply-add gives the same.
    return code.astype(jnp.float32) * shared.scale + shared.offset

  def boundaries(self, code, shared):
    integer = code.astype(jnp.float32)
    end = lambda x: x * shared.scale + shared.offset
    return (jnp.where(code == 0, -jnp.inf, end(integer - 0.5)),
            jnp.where(code == 15, jnp.inf, end(integer + 0.5)))

  @property
  def levels(self):
    return np.arange(16) / np.float32(15)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Q6K(KScheme):
  """6 bits: sub-blocks of 16 with a signed scale of 8 bits."""

  @property
  def sub_block(self):
    return 16

  def search(self, blocks):
    scale = self.by_super_block(_by_chunks(_fit_signed, blocks))
    largest = jnp.argmax(jnp.abs(scale), -1, keepdims=True)
    most = jnp.take_along_axis(scale, largest, -1)
    empty = jnp.abs(most) < _LEAST
    inverse = jnp.where(empty, 0, -128 / jnp.where(empty, 1, most))
    levels = jnp.minimum(_nearest(inverse * scale), 127)
    stored = jnp.where(empty, 0, 1 / jnp.where(empty, 1, inverse))
    return Stored(gguf_schemes.float16(stored[..., 0]), levels)

  def encode_at(self, values, shared):
    code = _nearest(_divide_by(values, shared.scale))
    code = jnp.where(shared.scale == 0, 0, code)
    return (jnp.clip(code, -32, 31) + 32).astype(jnp.uint8)

  def decode(self, code, shared):
    return (code.astype(jnp.float32) - 32) * shared.scale

  def boundaries(self, code, shared):
    integer, step = code.astype(jnp.float32) - 32, shared.scale
    infinity = jnp.where(step < 0, -jnp.inf, jnp.inf)
    below = jnp.where(code == 0, -infinity, (integer - 0.5) * step)
    above = jnp.where(code == 63, infinity, (integer + 0.5) * step)
    return jnp.minimum(below, above), jnp.maximum(below, above)

  @property
  def levels(self):
    return np.arange(-32, 32) / np.float32(32)


def _by_chunks(fit, blocks):
  """Fits blocks [..., Q, 1], a chunk at a time, to stay in the cache."""
  flat = blocks.reshape(-1, blocks.shape[-2])
  padded = jnp.pad(flat, ((0, -flat.shape[0] % _CHUNK), (0, 0)))
  found = lax.map(lambda chunk: fit(chunk.T), padded.reshape(
      -1, _CHUNK, flat.shape[1]))
  back = lambda x: x.ravel()[:flat.shape[0]].reshape(blocks.shape[:-2])
  return jax.tree.map(back, found)


def _fit_offset(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Scale and depth [n] of blocks [32, n]: x ~ scale * code - depth.

  Tries twenty-one scales around (max - min) / 15. For the codes of each, least
  squares with weights rms + |x| gives scale and offset. Returns the fit of
  least error (`make_qkx2_quants`).
  """
  weight = jnp.sqrt(blockwise.divide(_sum(x * x), x.shape[0])) + jnp.abs(x)
  low = jnp.minimum(jnp.min(x, 0, keepdims=True), 0)  # [1, n]
  high = jnp.max(x, 0, keepdims=True)
  flat = high == low
  sum_w, sum_x = _sum(weight), _sum(weight * x)

  def inverse(factor, offset):
    return factor / jnp.where(high == offset, 1, high - offset)

  def codes(inverse, offset):
    return jnp.clip(_nearest_float(inverse * (x - offset)), 0, 15)

  def error(code, scale, offset):
    miss = _product(scale, code) + offset - x
    return _sum(weight * (miss * miss))

  def attempt(i, best):
    scale, offset, least = best
    # Uses the best offset so far, as llama.cpp does.
    code = codes(inverse(jnp.asarray(_OFFSET_STEPS)[i], offset), offset)
    weighted = weight * code
    sum_l, sum_l2, sum_xl = (
        _sum(weighted), _sum(weighted * code), _sum(weighted * x))
    determinant = _product(sum_w, sum_l2) - _product(sum_l, sum_l)
    solvable = determinant > 0
    by = jnp.where(solvable, determinant, 1)
    new_scale = (_product(sum_w, sum_xl) - _product(sum_x, sum_l)) / by
    new_offset = (_product(sum_l2, sum_x) - _product(sum_l, sum_xl)) / by
    above = new_offset > 0
    new_scale = jnp.where(above, sum_xl / jnp.maximum(sum_l2, 1e-38), new_scale)
    new_offset = jnp.where(above, 0, new_offset)
    miss = error(code, new_scale, new_offset)
    better = solvable & (miss < least)
    pick = lambda new, old: jnp.where(better, new, old)
    return pick(new_scale, scale), pick(new_offset, offset), pick(miss, least)

  first = inverse(np.float32(15), low)
  widest = 1 / blockwise.rounded(first)  # XLA takes 1 / (a / b) for b / a.
  start = (widest, low, error(codes(first, low), widest, low))
  scale, offset, _ = lax.fori_loop(0, _OFFSET_STEPS.size, attempt, start)
  return jnp.where(flat, 0, scale)[0], -jnp.where(flat, low, offset)[0]


def _fit_signed(x: jax.Array) -> jax.Array:
  """Scale [n] of blocks [16, n]: x ~ scale * (code - 32).

  Tries nineteen scales around -max / 32 and refits each by least squares with
  weights x**2 (`make_qx_quants`).
  """
  index = jnp.argmax(jnp.abs(x), 0, keepdims=True)
  largest = jnp.take_along_axis(x, index, 0)  # [1, n]
  empty = jnp.abs(largest) < _LEAST
  divisor = jnp.where(empty, 1, largest)
  weight = x * x

  def attempt(i, best):
    scale, quality = best
    factor = -jnp.asarray(_SIGNED_STEPS)[i]
    code = jnp.clip(_nearest_float(factor / divisor * x), -32, 31)
    along, square = _sum(weight * x * code), _sum(weight * code * code)
    fits = square > 0
    new = jnp.where(fits, along / jnp.where(fits, square, 1), 0)
    better = (fits & (along * along > quality * square)) | (i == 0)
    return (jnp.where(better, new, scale),
            jnp.where(better, new * along, quality))

  zero = jnp.zeros(largest.shape, jnp.float32)
  scale, _ = lax.fori_loop(0, _SIGNED_STEPS.size, attempt, (zero, zero))
  return jnp.where(empty, 0, scale)[0]


def _product(x, y):
  return blockwise.rounded(x * y)


def _sum(products):
  """Sum [1, n] over the first axis, one entry after the other, as in C."""
  total = blockwise.rounded(products[:1])
  for i in range(1, products.shape[0]):
    total = total + blockwise.rounded(products[i:i + 1])
  return total


def _nearest_float(x):
  return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)


def _nearest(x):
  return _nearest_float(x).astype(jnp.int32)


def _ratio(one, largest):
  return jnp.where(largest > 0, one / jnp.where(largest > 0, largest, 1), 0)


def _divide_by(x, step):
  """x / step, or x if the step is 0."""
  return blockwise.divide(x, jnp.where(step == 0, 1, step))


Q4_K = Q4K(name='q4_k', fallback=gguf_schemes.Q5_0)
Q6_K = Q6K(name='q6_k', fallback=gguf_schemes.Q8_0)
