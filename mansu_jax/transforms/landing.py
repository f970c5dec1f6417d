"""Where the magnitude floor puts the weights of one leaf.

Everything here is elementwise: theta_0, the sum of the updates to it, and the
grids under it give theta_t. Values are float32 until the last line.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib

_ONE_ROUNDING = 2.0**-22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """What decides where weights land; static under jit.

  Attributes:
    schemes: of the grids, in their order.
    mode: 'hold', 'lift' or 'none'; see `magnitude_floor`.
    landing: 'centre' or 'boundary'.
    storage_dtype: decisions are made on values after a cast to it.
  """

  schemes: tuple[scheme_lib.Scheme, ...]
  mode: str
  landing: str
  storage_dtype: np.dtype

  def __call__(
      self, margin: jax.typing.ArrayLike, origin: jax.Array, latent: jax.Array,
      shared: Sequence[scheme_lib.Shared | None], *,
      lifting: jax.typing.ArrayLike) -> jax.Array:
    """Places one leaf.

    Args:
      margin: share of the distance to cover where a boundary decides.
      origin: theta_0, any shape and floating dtype.
      latent: float32 sum of the updates, same shape.
      shared: of the leaf's grid under each scheme; None where the scheme
        leaves the leaf alone.
      lifting: bool [], whether the lift step is reached.

    Returns:
      theta_t, shape and dtype of `origin`; NaN where the latent is not finite.
    """
    place = functools.partial(_place, self)
    return leaves.elementwise(
        place, origin, origin, latent, tuple(shared), margin, lifting)


@functools.partial(jax.jit, static_argnums=0)
def _place(rule, origin, latent, shared, margin, lifting):
  fit = lambda x: stored(x, origin.dtype, rule.storage_dtype)
  start = origin.astype(jnp.float32)
  if rule.mode == 'none':
    return fit(start + latent).astype(origin.dtype)
  grids = tuple(
      _Grid(grids_lib.LeafGrid(part, scheme, origin.shape), fit(start))
      for scheme, part in zip(rule.schemes, shared) if part is not None)
  exact = len(grids) == 1 and grids[0].scheme.keeps_centres and (
      rule.storage_dtype == origin.dtype == jnp.float32)
  land = functools.partial(
      _land, landing=rule.landing, fit=fit, grids=grids, exact=exact)
  keep_in = lambda x: fit(_clip(x, grids))
  if rule.mode == 'hold':
    value, moves = land(keep_in(start + latent))
    if rule.landing == 'boundary':
      moves &= jnp.abs(latent) >= margin * _distance(start, latent, grids)
  else:
    value, moves = land(keep_in(start + _lift(start, latent, grids, margin)))
    value = jnp.where(lifting, value, keep_in(start + latent))
    moves |= ~jnp.asarray(lifting)
  for grid in grids:
    moves &= ~grid.sets_scale
  placed = jnp.where(moves, value.astype(origin.dtype), origin)
  # Else a clip would give infinity a code, and comparisons would give NaN one.
  return jnp.where(jnp.isfinite(latent), placed, jnp.nan)


class _Grid:
  """A grid with theta_0 on it."""

  def __init__(self, grid: grids_lib.LeafGrid, origin: jax.Array):
    self.scheme = grid.scheme
    self.snap = grid.snap_finite  # `_place` sees what is not finite.
    self.sets_scale = grid.sets_scale(origin)
    self.extent = grid.extent()
    self.boundaries = functools.partial(grid.boundaries, origin)
    self._decoded = self.snap(origin)

  def changes(self, values: jax.Array) -> jax.Array:
    """Whether each value decodes differently from theta_0; bool."""
    return self.snap(values) != self._decoded


def stored(
    values: jax.Array,
    dtype: jax.typing.DTypeLike,
    storage_dtype: jax.typing.DTypeLike,
) -> jax.Array:
  """float32 values as a leaf of `dtype`, exported in `storage_dtype`, holds."""
  for rounding in (storage_dtype, dtype):
    values = leaves.cast(values, rounding)
  return values.astype(jnp.float32)


def _land(target, *, landing, fit, grids, exact):
  """Landing places of targets, and whether all schemes see them as moved.

  Args:
    target: float32 values within the extents.
    landing: as of `Rule`.
    fit: rounds values to what is stored.
    grids: of all schemes.
    exact: whether the only scheme's centres are known to be stored unchanged
      and to decode to themselves.
  """
  if exact and landing == 'centre':
    return grids[0].snap(target), grids[0].changes(target)
  value, moves = target, _changes(target, grids)
  lo, hi = _extent(grids)
  if landing == 'centre':
    centre = grids[0].snap(target)
    # Another scheme's block may end before this centre. One rounding, as of
    # 127 * (absmax / 127), is clipped off.
    one_more = lambda end: jnp.abs(end) * _ONE_ROUNDING
    moves &= (centre >= lo - one_more(lo)) & (centre <= hi + one_more(hi))
    value = fit(_clip(centre, grids))
    # Not so where a format stores its scale too coarsely to decode near it.
    moves &= grids[0].snap(value) == centre
  # The landing is asked too: a coarse cast may pull it back over a boundary or
  # out of its block's extent, and what is new under the first scheme may be old
  # under another.
  moves &= (value >= lo) & (value <= hi)
  return value, moves & _changes(value, grids)


def _extent(grids):
  """Least and largest value that leave every scheme's scale as it is."""
  lows, highs = zip(*(grid.extent for grid in grids))
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
