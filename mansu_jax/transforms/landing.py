"""Landing places of the weights of one leaf under the magnitude floor.

All arithmetic is elementwise and in float32: theta_0, the sum of the updates
and the grids of the leaf determine theta_t.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib

_ONE_ROUNDING = 2.0**-22


def stored(
    values: jax.Array,
    dtype: jax.typing.DTypeLike,
    storage_dtype: jax.typing.DTypeLike,
) -> jax.Array:
  """Rounds float32 values as a leaf of `dtype` exported in `storage_dtype`."""
  for rounding in (storage_dtype, dtype):
    values = leaves.cast(values, rounding)
  return values.astype(jnp.float32)


class FlooredLeaf:
  """theta_0 of a leaf, with its grid under each scheme.

  Attributes:
    start: theta_0, float32.
  """

  def __init__(
      self, origin: jax.Array, schemes: Sequence[scheme_lib.Scheme],
      shared: Sequence[scheme_lib.Shared | None],
      storage_dtype: jax.typing.DTypeLike):
    self.start = origin.astype(jnp.float32)
    self._store = functools.partial(
        stored, dtype=origin.dtype, storage_dtype=storage_dtype)
    self._origin = self._store(self.start)
    self._grids = [
        grids_lib.LeafGrid(part, scheme, origin.shape)
        for scheme, part in zip(schemes, shared) if part is not None]
    # Landing checks finite values only; the rule makes the others NaN.
    self._decoded = [grid.snap_finite(self._origin) for grid in self._grids]
    self._centres_are_exact = (
        len(self._grids) == 1 and self._grids[0].scheme.keeps_centres
        and storage_dtype == origin.dtype == jnp.float32)

  def sets_scale(self) -> jax.Array:
    """Whether each weight sets a scale and must not move; bool."""
    return functools.reduce(
        jnp.logical_or, [g.sets_scale(self._origin) for g in self._grids])

  def clip(self, values: jax.Array) -> jax.Array:
    """Clips to values that change no scale, rounded as stored."""
    return self._store(jnp.clip(values, *self._extent()))

  def distance(self, direction: jax.Array) -> jax.Array:
    """Distance until the decoded value changes under every scheme.

    Infinite if a scheme has no further value in this direction.
    """
    distances = []
    for grid in self._grids:
      lo, hi = grid.boundaries(self._origin)
      distances.append(
          jnp.where(direction > 0, hi - self.start, self.start - lo))
    return jnp.maximum(functools.reduce(jnp.maximum, distances), 0)

  def land_on_centre(self, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Landing at the value of the target's code under the first scheme.

    Args:
      target: float32 values from `clip`.

    Returns:
      The values, and whether each changes its code under every scheme.
    """
    centre = self._grids[0].snap_finite(target)
    if self._centres_are_exact:
      return centre, self._changes(target)
    lo, hi = self._extent()
    # A block of another scheme may end before this centre. A centre that misses
    # the end by one rounding, such as 127 * (absmax / 127), is clipped to it.
    tolerance = lambda end: jnp.abs(end) * _ONE_ROUNDING
    moves = self._changes(target)
    moves &= (centre >= lo - tolerance(lo)) & (centre <= hi + tolerance(hi))
    value = self.clip(centre)
    # False if a coarse stored scale decodes the centre to another value.
    moves &= self._grids[0].snap_finite(value) == centre
    return value, moves & self._is_valid(value)

  def land_on_target(self, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Landing at the target itself; see `land_on_centre`."""
    return target, self._changes(target) & self._is_valid(target)

  def _is_valid(self, values: jax.Array) -> jax.Array:
    """Whether values as stored change codes and no scales; bool.

    A coarse cast may move a value back over a boundary or out of its block's
    range. A new value of the first scheme may be the old one of another scheme.
    """
    lo, hi = self._extent()
    return (values >= lo) & (values <= hi) & self._changes(values)

  def _changes(self, values: jax.Array) -> jax.Array:
    """Whether values decode differently from theta_0 under every scheme."""
    return functools.reduce(jnp.logical_and, [
        grid.snap_finite(values) != decoded
        for grid, decoded in zip(self._grids, self._decoded)])

  def _extent(self) -> tuple[jax.Array, jax.Array]:
    """Least and largest value that change the scale of no scheme."""
    lows, highs = zip(*(grid.extent() for grid in self._grids))
    return (functools.reduce(jnp.maximum, lows),
            functools.reduce(jnp.minimum, highs))
