"""Cuts an axis into blocks, and computes the largest magnitude of each.

Blocks are [..., n, Q, m]: n blocks of Q weights, for m adjacent columns. If the
blocks lie along an axis that is not the last, a reshape is enough and vector
lanes stay full. A flat axis has m = 1.

XLA flushes float32 subnormals to zero on most devices, so magnitudes are
compared as integers: the bits of non-negative floats are ordered by value.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def split(flat: jax.Array, size: int) -> jax.Array:
  """Cuts [..., n] into [..., ceil(n / size), size, 1], padded with zeros."""
  n = flat.shape[-1]
  count = -(-n // size)
  if count * size != n:
    widths = [(0, 0)] * (flat.ndim - 1) + [(0, count * size - n)]
    flat = jnp.pad(flat, widths)
  return flat.reshape(*flat.shape[:-1], count, size, 1)


def join(blocks: jax.Array, n: int) -> jax.Array:
  """Inverse of `split`: [..., count, size, 1] to [..., n]."""
  flat = blocks.reshape(*blocks.shape[:-3], -1)
  return flat[..., :n]


def spread(part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Repeats each entry over its run along each axis, up to `shape`.

  The inverse of `[::run]`, which stores one entry for a run of neighbours.
  """
  runs, ones = split_runs(part.shape, shape)
  return jnp.broadcast_to(part.reshape(ones), runs).reshape(shape)


def split_runs(
    part: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[list[int], list[int]]:
  """Shapes with each run as an axis: of the full array, and of one with `part`.

  For example, [2, 10] and [128, 10] give [2, 64, 10] and [2, 1, 10].
  """
  runs, ones = [], []
  for n, size in zip(part, shape):
    runs += [n] if n == size else [n, size // n]
    ones += [n] if n == size else [n, 1]
  return runs, ones


def magnitude_bits(x: jax.Array) -> jax.Array:
  """int32 bits of |x| for float32 x, ordered as |x|, including subnormals."""
  return lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(0x7FFFFFFF)


def absmax(blocks: jax.Array) -> jax.Array:
  """Largest magnitude [..., 1, m] of each float32 block [..., Q, m]."""
  largest = jnp.max(magnitude_bits(blocks), axis=-2, keepdims=True, initial=0)
  return lax.bitcast_convert_type(largest, jnp.float32)


def lookup(index: jax.Array, table: np.ndarray) -> jax.Array:
  """`table[index]` for a short table, as selects, which XLA vectorizes."""
  out = jnp.full(index.shape, table[0])
  for i, entry in enumerate(table[1:]):
    out = jnp.where(index > i, entry, out)
  return out


def rank(x: jax.Array, thresholds: np.ndarray) -> jax.Array:
  """Number (uint8) of ascending thresholds strictly below each x."""
  out = jnp.zeros(x.shape, jnp.uint8)
  for threshold in thresholds:
    out += (x > threshold).astype(jnp.uint8)
  return out


def staircase(
    x: jax.Array, thresholds: np.ndarray, entries: np.ndarray) -> jax.Array:
  """`entries[rank(x, thresholds)]` as selects, without the rank."""
  out = jnp.full(x.shape, entries[0])
  for threshold, entry in zip(thresholds, entries[1:]):
    out = jnp.where(x > threshold, entry, out)
  return out


def rounded(product: jax.Array) -> jax.Array:
  """Forces a float32 product to be rounded before it is added to.

  Compilers fuse a product and a sum into one rounding, after they have removed
  optimization barriers. This clip changes no finite value and prevents fusion.
  """
  largest = np.finfo(np.float32).max
  return jnp.clip(product, -largest, largest)


def divide(x: jax.Array, by: jax.typing.ArrayLike) -> jax.Array:
  """x / by, correctly rounded, where one divisor serves many entries.

  XLA would multiply by the reciprocal of a common divisor, so this makes the
  divisor depend on x. x must not be NaN.
  """
  return x / jnp.where(x == x, jnp.asarray(by, jnp.float32), 1)
