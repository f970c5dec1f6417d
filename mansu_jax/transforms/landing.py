"""Where the magnitude floor puts the weights of one leaf.

Everything here is elementwise: theta_0, what has accumulated on it, and the
grids under it give theta_t. Values are float32 until the last line.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import leaves

_ONE_ROUNDING = 2.0**-22


@functools.partial(
    jax.jit, static_argnames=('mode', 'landing', 'storage_dtype'))
def place(
    origin: jax.Array,
    latent: jax.Array,
    grids: tuple[grids_lib.LeafGrid | None, ...],
    margin: jax.typing.ArrayLike,
    lifting: jax.typing.ArrayLike,
    *,
    mode: str,
    landing: str,
    storage_dtype: jax.typing.DTypeLike,
) -> jax.Array:
  """Places one leaf; for the options see `magnitude_floor`.

  Args:
    origin: theta_0, any shape and floating dtype.
    latent: float32 sum of the updates, same shape.
    grids: one a scheme, arrays of the same shape; None where the scheme leaves
      the leaf alone.
    margin: share of the distance to cover where a boundary decides.
    lifting: bool [], whether the lift step is reached.
    mode: 'hold', 'lift' or 'none'.
    landing: 'centre' or 'boundary'.
    storage_dtype: decisions are made on values after a cast to it.

  Returns:
    theta_t, shape and dtype of `origin`.
  """
  fit = lambda x: stored(x, origin.dtype, storage_dtype)
  grids = tuple(grid for grid in grids if grid is not None)
  start = origin.astype(jnp.float32)
  if mode == 'none':
    return fit(start + latent).astype(origin.dtype)
  keep_in = lambda x: fit(_clip(x, grids))
  if mode == 'hold':
    target = keep_in(start + latent)
    far_enough = True
    if landing == 'boundary':
      reach = margin * _distance(start, latent, grids)
      far_enough = jnp.abs(latent) >= reach
    value, moves = _land(target, landing, keep_in, grids)
    moves &= far_enough
  else:
    target = keep_in(start + _lift(start, latent, grids, margin))
    value, moves = _land(target, landing, keep_in, grids)
    value = jnp.where(lifting, value, keep_in(start + latent))
    moves |= ~jnp.asarray(lifting)
  for grid in grids:
    moves &= ~grid.frozen
  return jnp.where(moves, value.astype(origin.dtype), origin)


def stored(
    values: jax.Array,
    dtype: jax.typing.DTypeLike,
    storage_dtype: jax.typing.DTypeLike,
) -> jax.Array:
  """float32 values as a leaf of `dtype`, exported in `storage_dtype`, holds."""
  for rounding in (storage_dtype, dtype):
    values = leaves.cast(values, rounding)
  return values.astype(jnp.float32)


def _land(target, landing, keep_in, grids):
  """Landing places of targets, and whether all schemes see them as moved."""
  value, moves = target, _changes(target, grids)
  lo, hi = _extent(grids)
  if landing == 'centre':
    centre = grids[0].snap(target)
    # Another scheme's block may end before this centre. One rounding, as of
    # 127 * (absmax / 127), is clipped off.
    one_more = lambda end: jnp.abs(end) * _ONE_ROUNDING
    moves &= (centre >= lo - one_more(lo)) & (centre <= hi + one_more(hi))
    value = keep_in(centre)
    # Not so where a format stores its scale too coarsely to decode near it.
    moves &= grids[0].snap(value) == centre
  # The landing is asked too: a coarse cast may pull it back over a boundary or
  # out of its block's extent, and what is new under the first scheme may be old
  # under another.
  moves &= (value >= lo) & (value <= hi)
  return value, moves & _changes(value, grids)


def _extent(grids):
  """Least and largest value that leave every scheme's scale as it is."""
  lows, highs = zip(*(grid.extent() for grid in grids))
  return (functools.reduce(jnp.maximum, lows),
          functools.reduce(jnp.minimum, highs))


def _clip(values, grids):
  return jnp.clip(values, *_extent(grids))


def _changes(values, grids):
  """Whether every scheme tells the values from theta_0's; bool."""
  return functools.reduce(
      jnp.logical_and, [grid.changes(values) for grid in grids])


def _distance(start, direction, grids):
  """How far until every scheme has another value; infinite: not that way."""
  distances = []
  for grid in grids:
    lo, hi = grid.boundaries()
    distances.append(jnp.where(direction > 0, hi - start, start - lo))
  return jnp.maximum(functools.reduce(jnp.maximum, distances), 0)


def _lift(start, latent, grids, margin):
  """Scales each offset that is too small for a change up to the floor."""
  reach = margin * _distance(start, latent, grids)
  lifted = jnp.sign(latent) * jnp.maximum(jnp.abs(latent), reach)
  return jnp.where(latent == 0, 0, lifted)
