"""How much of an edit is left after quantization.

What counts is which codes changed, how far each weight went towards its
boundary, how much of the edit is carried along its own direction, and the
cosine of the quantized edit with the edit. Where weights are spread over their
bins, rounding is unbiased on average over them: a diffuse edit is carried
nearly whole, by the few weights next to a boundary that jump a bin and by the
drift of scales whose own weights moved, under noise of many times its norm.
Where weights sit on their codes, as in a model that was stored in this format,
a small edit is not carried at all, but for that drift.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import affine
from mansu_jax.quant import blocking
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes
from mansu_jax.quant import simulate
from mansu_jax.runtime import sharding

Codes = Mapping[str, affine.AffineCodes]
# Bins of log10(|d| / dist): 0 is the boundary. The end bins take the rest.
HISTOGRAM_EDGES = np.linspace(-6.0, 2.0, 33)
_DROPPED_BITS = 10  # Of a ratio's 23 after the point, for its median.


class _Ratios(NamedTuple):
  """|d| / dist of moved weights, in memory that does not grow with them."""

  histogram: np.ndarray  # int64, in the bins of `HISTOGRAM_EDGES`
  bits: np.ndarray  # uint32 [n], the leading ones, ascending
  counts: np.ndarray  # int64 [n], ratios that begin so
  sums: np.ndarray  # float64 [n], theirs

  @property
  def median(self) -> float | None:
    if not self.counts.size:
      return None
    until = np.cumsum(self.counts)
    middle = np.array([(until[-1] - 1) // 2, until[-1] // 2])
    at = np.searchsorted(until, middle, side='right')
    return float(np.mean(self.sums[at] / self.counts[at]))


class _Tally(NamedTuple):
  """What a leaf, or several, contribute; on the host."""

  size: int
  counts: np.ndarray  # int64 [3]: moved, changed codes, moved and unchanged
  products: np.ndarray  # float64 [3]: q . q, d . d, q . d; d edit, q quantized
  ratios: _Ratios
  by_batch: tuple[np.ndarray, np.ndarray] | None = None  # Both sums, [3, B].


class _View(NamedTuple):
  """What a scheme makes of a matrix."""

  level: jax.Array  # alike where values are, but for the scale
  value: jax.Array  # float32
  interval: tuple[jax.Array, jax.Array]  # float32, of the code


def _view(leaf, scheme, layout) -> _View:
  codes = blocking.encode(leaf, scheme, layout)
  *_, columns = layout_lib.rows_shape(leaf.shape, layout)
  scheme = scheme.for_columns(columns)
  made = _View(
      scheme.level(codes.code), scheme.decode(codes.code, codes.shared),
      scheme.boundaries(codes.code, codes.shared))
  return jax.tree.map(lambda x: layout_lib.to_rows(x, layout), made)


def survival(
    theta0: leaves.PyTree,
    theta_u: leaves.PyTree,
    scheme: str | scheme_lib.Scheme,
    layout: leaves.PyTree,
    *,
    codes: tuple[Codes, Codes] | None = None,
    total_params: int | None = None,
) -> dict[str, Any]:
  """Measures what quantization leaves of the edit theta_u - theta0.

  Args:
    theta0: any pytree of weights, before.
    theta_u: after; same structure and shapes.
    scheme: a scheme or its name.
    layout: a tree like both of `BlockLayout`, None for unquantized leaves.
    codes: of both, by leaf name with the leaf's batch axes, from a scheme that
      needs calibration inputs; None: the scheme makes them.
    total_params: what shares are relative to; None: all entries of theta0.

  Returns:
    `{'total': statistics, 'leaves': {leaf name: statistics}, 'edges': list}`,
    of numbers and lists for JSON. Statistics are

      size: weights of the leaf (of all leaves).
      moved: share that is not equal to theta0.
      changed_codes: share whose code changed to one of another value, each
        under the scale of its own block; FP4's zeros count as one, and codes
        with a zero point are counted from there.
      moved_unchanged: share that moved and kept its code: edits rounded away.
      median_ratio: median over moved weights of |d| / dist, dist being the
        distance from theta0 to the end of its code's interval in the direction
        of d (infinite outward of an end code), to 1.2e-4 of itself; None if
        none moved.
      carried: projection of the quantized edit q = Q(theta_u) - Q(theta0) on
        the edit d = theta_u - theta0, q . d / d . d; None if d vanishes.
      cosine: of q with d; None if either vanishes.
      histogram: counts of log10(|d| / dist) of moved weights in the bins of
        'edges'; the first and last bin are open.
      by_layer: of a stacked leaf, `moved`, `changed_codes` (shares of the
        total, too) and `cosine` of each of its matrices, as lists.

    The total counts unquantized leaves in `size` and `moved` only: an edit
    there is not quantized. They have no entry of their own unless they moved.

  Raises:
    ValueError: as `fake_quantize`, or trees of different shapes.
  """
  scheme = schemes.get(scheme) if codes is None else None
  before, after = leaves.pairs(theta0, theta_u, 'The unlearned weights')
  for params in (theta0, theta_u):
    aligned = simulate.check_quantizable(params, layout, scheme)
  layouts = leaves.named(aligned)
  given = lambda name: tuple(c[name] for c in codes) if (
      codes and layouts[name] is not None) else None
  tallies = {
      name: _tally(leaf, after[name], scheme, layouts[name], given(name))
      for name, leaf in before.items()}
  whole = _merge(list(tallies.values()))
  shown = {
      name: tally for name, tally in tallies.items()
      if layouts[name] is not None or tally.counts[0]}
  statistics = functools.partial(
      _statistics, total_params=total_params or whole.size)
  return {
      'total': statistics(whole),
      'leaves': {name: statistics(tally) for name, tally in shown.items()},
      'edges': HISTOGRAM_EDGES.tolist()}


def _tally(before, after, scheme, layout, codes) -> _Tally:
  if layout is None:
    moved = int(jnp.sum(jnp.asarray(before) != jnp.asarray(after)))
    return _Tally(
        before.size, np.array([moved, 0, 0]), np.zeros(3),
        _count_ratios(np.zeros(0, np.float32)))
  counts, products, ratios = [], [], []
  for index in np.ndindex(*(before.shape[layout.memory.index(a)]
                            for a in layout.batch)):
    # One matrix at a time: several arrays of its size are needed.
    take = lambda x: x[index]
    one = compare_matrix(
        _matrix(before, layout, index), _matrix(after, layout, index),
        jax.tree.map(take, codes), scheme, layout.unbatched())
    moved, ratio, count, product = sharding.to_host(one)
    counts.append(count.sum(1, dtype=np.int64))
    products.append(product.sum(1, dtype=np.float64))
    ratios.append(_count_ratios(ratio[moved]))
  counts, products = np.stack(counts, 1), np.stack(products, 1)  # [3, B]
  return _Tally(
      before.size, counts.sum(1), products.sum(1), _merge_ratios(ratios),
      (counts, products) if layout.batch else None)


def _matrix(leaf, layout, index):
  """One matrix of a stack, its axes in memory order."""
  where = dict(zip(layout.batch, index))
  return leaf[tuple(where.get(axis, slice(None)) for axis in layout.memory)]


@functools.partial(jax.jit, static_argnames=('scheme', 'layout'))
def compare_matrix(
    before: jax.Array, after: jax.Array,
    codes: tuple[affine.AffineCodes, affine.AffineCodes] | None,
    scheme: scheme_lib.Scheme | None, layout: layout_lib.BlockLayout
) -> tuple[jax.Array, ...]:
  """One matrix on the device; sums a row, to be added in float64.

  Args:
    before: the matrix, in its memory order, and so `after`.
    after: of the edited model.
    codes: of both, where calibration has made them; else None.
    scheme: makes the codes; None where they are given.
    layout: of the matrix.

  Returns:
    moved: bool [out, in].
    ratio: float32 [out, in], |d| / dist.
    counts: int32 [3, out], as in `_Tally`.
    products: float32 [3, out], as in `_Tally`.
  """
  if scheme is None:
    view = lambda c: _View(
        affine.level(c), affine.decode(c), affine.boundaries(c))
    old, new = map(view, codes)
  else:
    old, new = (_view(leaf, scheme, layout) for leaf in (before, after))
  before, after = (
      layout_lib.to_rows(leaf, layout).astype(jnp.float32)
      for leaf in (before, after))
  edit = after - before
  lo, hi = old.interval
  distance = jnp.maximum(jnp.where(edit > 0, hi - before, before - lo), 0)
  moved = after != before
  changed = (new.level != old.level) & (new.value != old.value)
  left = new.value - old.value
  counts = [moved, changed, moved & ~changed]
  products = [left * left, edit * edit, left * edit]
  row_sums = lambda terms, dtype: jnp.stack(
      [jnp.sum(term, axis=-1, dtype=dtype) for term in terms])
  return (
      moved, jnp.abs(edit) / distance, row_sums(counts, jnp.int32),
      row_sums(products, jnp.float32))


def _merge(tallies: list[_Tally]) -> _Tally:
  return _Tally(
      sum(tally.size for tally in tallies),
      np.sum([tally.counts for tally in tallies], axis=0),
      np.sum([tally.products for tally in tallies], axis=0),
      _merge_ratios([tally.ratios for tally in tallies]))


def _count_ratios(ratios: np.ndarray) -> _Ratios:
  """Counts float32 ratios [n], none of them negative."""
  with np.errstate(divide='ignore'):
    exponents = np.log10(ratios)
  inside = np.clip(exponents, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
  bits = ratios.view(np.uint32) >> _DROPPED_BITS  # In the order of values.
  counts = np.bincount(bits)
  found = np.flatnonzero(counts)
  return _Ratios(
      np.histogram(inside, HISTOGRAM_EDGES)[0], found.astype(np.uint32),
      counts[found], np.bincount(bits, ratios)[found])


def _merge_ratios(parts: list[_Ratios]) -> _Ratios:
  histograms, bits, counts, sums = zip(*parts)
  kept, places = np.unique(np.concatenate(bits), return_inverse=True)
  joined = np.zeros(kept.size, np.int64), np.zeros(kept.size)
  for total, pieces in zip(joined, (counts, sums)):
    np.add.at(total, places, np.concatenate(pieces))
  return _Ratios(np.sum(histograms, axis=0), kept, *joined)


def _statistics(tally: _Tally, total_params: int) -> dict[str, Any]:
  moved, changed, moved_unchanged = (tally.counts / total_params).tolist()
  left, edit, both = tally.products.tolist()
  has_direction = left > 0 and edit > 0
  carried = both / edit if edit > 0 else None
  return {
      'size': int(tally.size), 'moved': moved, 'changed_codes': changed,
      'moved_unchanged': moved_unchanged,
      'median_ratio': tally.ratios.median,
      'carried': carried,
      'cosine': both / np.sqrt(left * edit) if has_direction else None,
      'histogram': tally.ratios.histogram.tolist(),
      **_by_layer(tally, total_params)}


def _by_layer(tally: _Tally, total_params: int) -> dict[str, Any]:
  """The statistics of each matrix of a stacked leaf."""
  if tally.by_batch is None:
    return {}
  (moved, changed, _), (left, edit, both) = tally.by_batch
  return {'by_layer': {
      'moved': (moved / total_params).tolist(),
      'changed_codes': (changed / total_params).tolist(),
      'cosine': [
          float(b / np.sqrt(l * e)) if l > 0 and e > 0 else None
          for l, e, b in zip(left, edit, both)]}}
