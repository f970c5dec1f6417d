"""Block quantization to a table of values, as bitsandbytes does it.

The arithmetic is that of bitsandbytes 0.50.2 to the last bit; its rules are
written down in the golden README of this project. Blocks run over the
flattened torch matrix and the last one may be partial.
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
from mansu_jax.quant import scheme


# A scheme is static: eager calls compile once a shape, traced ones inline.
_compiled = functools.partial(jax.jit, static_argnums=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookScheme(scheme.Scheme):
  """NF4, FP4 and their like.

  Attributes:
    name: the name in flags and records.
    table: value of each code, within [-1, 1].
    order: the codes in order of value.
    block: Q, the number of weights that share a scale.
  """

  table: tuple[float, ...]
  order: tuple[int, ...]
  block: int = 64

  def split(self, rows: jax.Array) -> jax.Array:
    flat = rows.reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])
    return blockwise.split(flat, self.block)

  def join(self, blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return blockwise.join(blocks, shape[-2] * shape[-1]).reshape(shape)

  def tail(self, shape: tuple[int, ...]) -> np.ndarray | None:
    n = math.prod(shape[-2:])
    if n % self.block == 0:
      return None
    return np.arange(n // self.block + 1)[:, None] == n // self.block

  @_compiled
  def encode_at(self, values, scale, tail=None):
    return self._by_range(self._encode, values, scale, tail)

  @_compiled
  def decode(self, code, scale):
    extreme = extremes.any_extreme(scale)
    return _exact_if(extreme, self._decode, code, scale)

  @_compiled
  def snap(self, values, scale, tail=None):
    return self._by_range(self._snap, values, scale, tail)

  def level(self, code):
    return blockwise.lookup(code, self._levels)

  def boundaries(self, code, scale):
    level = self.level(code)
    ends = self._level_ends
    lo = blockwise.lookup(level, np.append(np.float32(-np.inf), ends))
    hi = blockwise.lookup(level, np.append(ends, np.float32(np.inf)))
    times = lambda end: jnp.where(jnp.isinf(end), end, end * scale)
    return times(lo), times(hi)

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
    """Code -> place among the distinct values."""
    return np.unique(self._table, return_inverse=True)[1].astype(np.uint8)

  @functools.cached_property
  def _level_ends(self) -> np.ndarray:
    """Midpoints between codes of different value."""
    values = self._table[self._order]
    return self._midpoints[values[1:] != values[:-1]]

  def _by_range(self, fn, values, scale, tail):
    extreme = extremes.any_extreme(scale)
    if 0 in self._midpoints:  # Two zeros: the sign of a tiny value counts.
      extreme |= extremes.any_extreme(values)
    return _exact_if(extreme, fn, values, scale, tail)

  def _encode(self, exact, values, scale, tail):
    normalize = extremes.normalize if exact else _normalize
    code = blockwise.rank(normalize(values, scale, tail), self._midpoints)
    if np.array_equal(self._order, np.arange(len(self._order))):
      return code
    return blockwise.lookup(code, self._order)

  def _decode(self, exact, code, scale):
    value = blockwise.lookup(code, self._table)
    return extremes.multiply(value, scale) if exact else value * scale

  def _snap(self, exact, values, scale, tail):
    return self._decode(exact, self._encode(exact, values, scale, tail), scale)


def _exact_if(extreme, fn, *args):
  """Calls `fn(exact, *args)`, exact where float32 in XLA would lose bits."""
  return lax.cond(
      extreme, functools.partial(fn, True), functools.partial(fn, False),
      *args)


def _normalize(values, scale, tail):
  """x / absmax by bitsandbytes' formulas, for ordinary magnitudes."""
  scale = jnp.maximum(scale, extremes.SMALLEST_ORDINARY)  # Blocks of zeros.
  full = values * (1 / scale)
  if tail is None:
    return full
  # Unless it is hidden, XLA turns a common divisor into a reciprocal.
  divisor = lax.optimization_barrier(jnp.broadcast_to(scale, values.shape))
  return jnp.where(tail, values / divisor, full)
