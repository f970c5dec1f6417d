"""Block quantization to a table of values, as in bitsandbytes.

Results equal those of bitsandbytes 0.50.2 on a CPU to the last bit. Its rules,
in float32:

* Blocks cut the flattened, row-major torch matrix; the last one may be partial.
* The scale of a block is its largest |x|, absmax. A weight of a full block is
  normalized to x * (1 / max(absmax, 1e-38)), one of a partial block to
  x / absmax; the two differ near the boundaries of codes.
* Code boundaries are the midpoints of neighbouring values of the table. A
  weight on a midpoint takes the code of the lower value.
* The value of a code is its table entry times the scale.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise
from mansu_jax.quant import codebooks
from mansu_jax.quant import extremes
from mansu_jax.quant import nested
from mansu_jax.quant import scheme

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # As in bitsandbytes.
DEFAULT_BLOCK = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookScheme(scheme.Scheme):
  """NF4, FP4 and their variants.

  Attributes:
    name: name in flags and records.
    table: value of each code, within [-1, 1].
    order: codes in order of value.
    block: number Q of weights that share a scale; one of `BLOCKS`.
    double_quant: whether scales are stored in 8 bits; see `nested`.
    is_ordinary: whether all scales are known to be 0 or within 2**-60 to 2**60,
      where plain arithmetic is exact. If False, this is checked at run time.

  Raises:
    ValueError: a block size that bitsandbytes does not support.
  """

  table: tuple[float, ...]
  order: tuple[int, ...]
  block: int = DEFAULT_BLOCK
  double_quant: bool = False
  is_ordinary: bool = False

  def __post_init__(self):
    if self.block not in BLOCKS:
      raise ValueError(
          f'{self.name} has a block of {self.block} weights; wanted one of'
          f' {BLOCKS}, as in bitsandbytes.')

  @property
  def description(self):
    return {'code_book': f'{self.name.split("_")[0].upper()} (bitsandbytes)',
            'block': self.block, 'double_quantization': self.double_quant}

  def ordinary(self):
    return dataclasses.replace(self, is_ordinary=True)

  @property
  def keeps_centres(self):
    # |value * scale| <= scale, and (value * scale) * (1 / scale) is within two
    # roundings of the value, which is far from a midpoint.
    return self.is_ordinary and not self.double_quant

  def block_length(self, columns):
    return self.block

  def split(self, rows: jax.Array) -> jax.Array:
    flat = rows.reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])
    return blockwise.split(flat, self.block)

  def join(self, blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return blockwise.join(blocks, shape[-2] * shape[-1]).reshape(shape)

  def fit(self, blocks, shape):
    scale = blockwise.absmax(blocks)
    stored = self._quantize_scales(scale) if self.double_quant else None
    return scheme.Shared(scale, stored=stored, tail=self._tail(shape))

  def _quantize_scales(self, scale):
    """Double quantization of scales [..., n, 1, m], in the matrix's order."""
    in_order = jnp.swapaxes(scale[..., 0, :], -1, -2)  # [..., m, n]
    flat = in_order.reshape(*in_order.shape[:-2], -1)
    restored = nested.fake_quantize(flat).reshape(in_order.shape)
    return jnp.swapaxes(restored, -1, -2)[..., None, :]

  def _tail(self, shape: tuple[int, ...]) -> jax.Array | None:
    """Which blocks [n, 1, 1] are partial; None if none is."""
    n = math.prod(shape[-2:])
    if n % self.block == 0:
      return None
    return jnp.arange(n // self.block + 1)[:, None, None] == n // self.block

  @scheme.compiled
  def encode_at(self, values, shared):
    if self.is_ordinary:
      return self._encode(False, values, shared)
    extreme = extremes.any_extreme(shared.scale)
    if 0 in self._midpoints:  # Two zeros: the sign of a tiny value matters.
      extreme |= extremes.any_extreme(values)
    return _exact_if(extreme, self._encode, values, shared)

  @scheme.compiled
  def decode(self, code, shared):
    if self.is_ordinary:
      return self._decode(False, code, shared)
    extreme = extremes.any_extreme(_stored(shared))
    return _exact_if(extreme, self._decode, code, shared)

  @scheme.compiled
  def snap(self, values, shared):
    if self.is_ordinary:
      return self._snap(False, values, shared)
    extreme = extremes.any_extreme(shared.scale)
    if shared.stored is not None:
      extreme |= extremes.any_extreme(shared.stored)
    return _exact_if(extreme, self._snap, values, shared)

  def level(self, code):
    return blockwise.lookup(code, self._levels)

  @property
  def levels(self):
    return np.unique(self._table)

  def boundaries(self, code, shared):
    level = self.level(code)
    ends = self._level_ends
    lo = blockwise.lookup(level, np.append(np.float32(-np.inf), ends))
    hi = blockwise.lookup(level, np.append(ends, np.float32(np.inf)))
    scaled = lambda end: jnp.where(jnp.isinf(end), end, end * shared.scale)
    return scaled(lo), scaled(hi)

  @functools.cached_property
  def _table(self) -> np.ndarray:
    return np.asarray(self.table, np.float32)

  @functools.cached_property
  def _order(self) -> np.ndarray:
    return np.asarray(self.order, np.uint8)

  @functools.cached_property
  def _midpoints(self) -> np.ndarray:
    return codebooks.midpoints(self._table, self._order)

  @functools.cached_property
  def _levels(self) -> np.ndarray:
    """Code -> index among the distinct values."""
    return np.unique(self._table, return_inverse=True)[1].astype(np.uint8)

  @functools.cached_property
  def _level_ends(self) -> np.ndarray:
    """Midpoints between codes of different values."""
    values = self._table[self._order]
    return self._midpoints[values[1:] != values[:-1]]

  def _normalized(self, exact, values, shared):
    normalize = extremes.normalize if exact else _normalize
    return normalize(values, shared.scale, shared.tail)

  def _encode(self, exact, values, shared):
    rank = blockwise.rank(
        self._normalized(exact, values, shared), self._midpoints)
    if np.array_equal(self._order, np.arange(len(self._order))):
      return rank
    return blockwise.lookup(rank, self._order)

  def _decode(self, exact, code, shared):
    return _multiply(exact, blockwise.lookup(code, self._table), shared)

  def _snap(self, exact, values, shared):
    value = blockwise.staircase(
        self._normalized(exact, values, shared), self._midpoints,
        self._table[self._order])
    return _multiply(exact, value, shared)


def _stored(shared: scheme.Shared) -> jax.Array:
  return shared.scale if shared.stored is None else shared.stored


def _multiply(exact, value, shared):
  scale = _stored(shared)
  return extremes.multiply(value, scale) if exact else value * scale


def _exact_if(extreme, fn, *args):
  """Calls `fn(exact, *args)`; exact if `extreme`, since XLA would lose bits."""
  return lax.cond(
      extreme, functools.partial(fn, True), functools.partial(fn, False),
      *args)


def _normalize(values, scale, tail):
  """x / absmax by the formulas of bitsandbytes, for ordinary magnitudes."""
  scale = jnp.maximum(scale, extremes.SMALLEST_ORDINARY)  # Blocks of zeros.
  full = values * (1 / scale)
  if tail is None:
    return full
  return jnp.where(tail, blockwise.divide(values, scale), full)
