"""Measures how much of an edit quantization preserves.

The statistics are: which codes changed, how far each weight moved towards its
boundary, the projection of the quantized edit on the edit, and their cosine.

If weights are spread over their bins, rounding is unbiased on average.
Quantization then preserves nearly all of a diffuse edit in its direction, under
noise of many times its norm: a few weights next to a boundary jump a bin, and
scales drift if the weights that set them move. If weights lie on their code
values, as in a model that was stored in this format, a small edit is lost
except for the drift of scales.
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
from mansu_jax.quant import devices
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes
from mansu_jax.quant import simulate

Codes = Mapping[str, affine.AffineCodes]
# Bins of log10(|d| / dist), where 0 is the boundary. The end bins are open.
HISTOGRAM_EDGES = np.linspace(-6.0, 2.0, 33)
_DROPPED_BITS = 10  # Mantissa bits of a ratio, out of 23, that medians ignore.


class _Ratios(NamedTuple):
  """Distribution of |d| / dist over moved weights, in bounded memory.

  Ratios with the same leading bits share one of n entries.
  """

  histogram: np.ndarray  # int64, counts in the bins of `HISTOGRAM_EDGES`
  bits: np.ndarray  # uint32 [n], leading bits of the ratios, ascending
  counts: np.ndarray  # int64 [n], number of ratios with these bits
  sums: np.ndarray  # float64 [n], sum of these ratios

  @property
  def median(self) -> float | None:
    if not self.counts.size:
      return None
    cumulative = np.cumsum(self.counts)
    middle = np.array([(cumulative[-1] - 1) // 2, cumulative[-1] // 2])
    at = np.searchsorted(cumulative, middle, side='right')
    return float(np.mean(self.sums[at] / self.counts[at]))


class _Tally(NamedTuple):
  """Sums over one or several leaves, on the host.

  The edit is d, the quantized edit q.
  """

  size: int
  counts: np.ndarray  # int64 [3]: moved, changed codes, moved and unchanged
  products: np.ndarray  # float64 [3]: q . q, d . d, q . d
  ratios: _Ratios
  # counts and products of each matrix of a stack, [3, B].
  by_batch: tuple[np.ndarray, np.ndarray] | None = None


class _Quantized(NamedTuple):
  """A matrix [out, in] after quantization."""

  level: jax.Array  # index of the code in order of value
  value: jax.Array  # float32, decoded
  interval: tuple[jax.Array, jax.Array]  # float32, ends of the code's interval


def _quantize(leaf, scheme, layout) -> _Quantized:
  codes = blocking.encode(leaf, scheme, layout)
  *_, columns = layout_lib.rows_shape(leaf.shape, layout)
  scheme = scheme.for_columns(columns)
  quantized = _Quantized(
      scheme.level(codes.code), scheme.decode(codes.code, codes.shared),
      scheme.boundaries(codes.code, codes.shared))
  return jax.tree.map(lambda x: layout_lib.to_rows(x, layout), quantized)


def survival(
    theta0: leaves.PyTree,
    theta_u: leaves.PyTree,
    scheme: str | scheme_lib.Scheme,
    layout: leaves.PyTree,
    *,
    codes: tuple[Codes, Codes] | None = None,
    total_params: int | None = None,
) -> dict[str, Any]:
  """Measures how much of the edit theta_u - theta0 quantization preserves.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax.quant import layout, survival
    >>> before = {'w': jnp.array([[1.0, 0.30, -0.52, 0.0]])}
    >>> after = {'w': jnp.array([[1.0, 0.31, -1.00, 0.0]])}
    >>> found = survival.survival(before, after, 'nf4', {'w': layout.TORCH})
    >>> found['total']['moved'], found['total']['changed_codes']
    (0.5, 0.25)
    >>> round(found['total']['cosine'], 3)
    1.0

  Args:
    theta0: any pytree of weights, before the edit.
    theta_u: the weights after the edit, with the same structure and shapes.
    scheme: a scheme or its name.
    layout: a tree like both of `BlockLayout`; None for unquantized leaves.
    codes: codes of both trees, by leaf name and with the batch axes of the
      leaf, from a scheme that needs calibration inputs. None: the scheme
      encodes the weights.
    total_params: denominator of the shares; None: all entries of theta0.

  Returns:
    `{'total': statistics, 'leaves': {leaf name: statistics}, 'edges': list}`
    with numbers and lists for JSON. Statistics are

      size: number of weights.
      moved: share of weights that differ from theta0.
      changed_codes: share of weights whose code changed to one of another
        value, each at the scale of its own block. FP4's two zeros count as one
        value. Codes with a zero point are compared after subtracting it.
      moved_unchanged: share of weights that moved but kept their code.
      median_ratio: median of |d| / dist over moved weights, with a relative
        precision of 1.2e-4; None if none moved. dist is the distance from
        theta0 to the end of its code's interval in the direction of d; it is
        infinite beyond an end code.
      carried: projection of the quantized edit q = Q(theta_u) - Q(theta0) on
        the edit d = theta_u - theta0, q . d / d . d; None if d is zero.
      cosine: cosine of q and d; None if either is zero.
      histogram: counts of log10(|d| / dist) over moved weights in the bins of
        'edges'; the first and last bin are open.
      by_layer: for a stacked leaf, lists of `moved`, `changed_codes` (with the
        same denominator) and `cosine` of each of its matrices.

    In the total, unquantized leaves count in `size` and `moved` only. They have
    an entry of their own only if they moved.

  Raises:
    ValueError: see `fake_quantize`; also trees of different shapes.
  """
  scheme = schemes.get(scheme) if codes is None else None
  before, after = leaves.flatten_pair(theta0, theta_u, 'The unlearned weights')
  for params in (theta0, theta_u):
    aligned = simulate.check_quantizable(params, layout, scheme)
  layouts = leaves.flatten(aligned)
  codes_of = lambda name: tuple(c[name] for c in codes) if (
      codes and layouts[name] is not None) else None
  tallies = {
      name: _tally(leaf, after[name], scheme, layouts[name], codes_of(name))
      for name, leaf in before.items()}
  total = _merge(list(tallies.values()))
  listed = {
      name: tally for name, tally in tallies.items()
      if layouts[name] is not None or tally.counts[0]}
  statistics = functools.partial(
      _statistics, total_params=total_params or total.size)
  return {
      'total': statistics(total),
      'leaves': {name: statistics(tally) for name, tally in listed.items()},
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
    # One matrix at a time, since each needs several arrays of its size.
    compared = compare_matrix(
        _matrix(before, layout, index), _matrix(after, layout, index),
        jax.tree.map(lambda x: x[index], codes), scheme, layout.unbatched())
    moved, ratio, count, product = devices.to_host(compared)
    counts.append(count.sum(1, dtype=np.int64))
    products.append(product.sum(1, dtype=np.float64))
    ratios.append(_count_ratios(ratio[moved]))
  counts, products = np.stack(counts, 1), np.stack(products, 1)  # [3, B]
  return _Tally(
      before.size, counts.sum(1), products.sum(1), _merge_ratios(ratios),
      (counts, products) if layout.batch else None)


def _matrix(leaf, layout, index):
  """One matrix of a stack, with axes in memory order."""
  index_of = dict(zip(layout.batch, index))
  return leaf[tuple(index_of.get(axis, slice(None)) for axis in layout.memory)]


@functools.partial(jax.jit, static_argnames=('scheme', 'layout'))
def compare_matrix(
    before: jax.Array, after: jax.Array,
    codes: tuple[affine.AffineCodes, affine.AffineCodes] | None,
    scheme: scheme_lib.Scheme | None, layout: layout_lib.BlockLayout
) -> tuple[jax.Array, ...]:
  """Compares one matrix before and after the edit, on the device.

  Sums are by row; the caller adds the rows in float64.

  Args:
    before: the matrix before the edit, in memory order.
    after: the matrix after the edit, in memory order.
    codes: codes of both from calibration, or None.
    scheme: the scheme that encodes both; None if `codes` is given.
    layout: layout of the matrix.

  Returns:
    moved: bool [out, in].
    ratio: float32 [out, in], |d| / dist.
    counts: int32 [3, out], as in `_Tally`.
    products: float32 [3, out], as in `_Tally`.
  """
  if scheme is None:
    old, new = (
        _Quantized(affine.level(c), affine.decode(c), affine.boundaries(c))
        for c in codes)
  else:
    old, new = (_quantize(leaf, scheme, layout) for leaf in (before, after))
  before, after = (
      layout_lib.to_rows(leaf, layout).astype(jnp.float32)
      for leaf in (before, after))
  edit = after - before
  lo, hi = old.interval
  distance = jnp.maximum(jnp.where(edit > 0, hi - before, before - lo), 0)
  moved = after != before
  changed = (new.level != old.level) & (new.value != old.value)
  quantized_edit = new.value - old.value
  counts = [moved, changed, moved & ~changed]
  products = [
      quantized_edit * quantized_edit, edit * edit, quantized_edit * edit]
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
  """Counts non-negative float32 ratios [n]."""
  with np.errstate(divide='ignore'):
    exponents = np.log10(ratios)
  inside = np.clip(exponents, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
  bits = ratios.view(np.uint32) >> _DROPPED_BITS  # Ordered by value.
  counts = np.bincount(bits)
  occupied = np.flatnonzero(counts)
  return _Ratios(
      np.histogram(inside, HISTOGRAM_EDGES)[0], occupied.astype(np.uint32),
      counts[occupied], np.bincount(bits, ratios)[occupied])


def _merge_ratios(parts: list[_Ratios]) -> _Ratios:
  histograms, bits, counts, sums = zip(*parts)
  unique, indices = np.unique(np.concatenate(bits), return_inverse=True)
  totals = np.zeros(unique.size, np.int64), np.zeros(unique.size)
  for total, pieces in zip(totals, (counts, sums)):
    np.add.at(total, indices, np.concatenate(pieces))
  return _Ratios(np.sum(histograms, axis=0), unique, *totals)


def _statistics(tally: _Tally, total_params: int) -> dict[str, Any]:
  moved, changed, moved_unchanged = (tally.counts / total_params).tolist()
  qq, dd, qd = tally.products.tolist()
  return {
      'size': int(tally.size), 'moved': moved, 'changed_codes': changed,
      'moved_unchanged': moved_unchanged,
      'median_ratio': tally.ratios.median,
      'carried': qd / dd if dd > 0 else None,
      'cosine': _cosine(qq, dd, qd),
      'histogram': tally.ratios.histogram.tolist(),
      **_by_layer(tally, total_params)}


def _by_layer(tally: _Tally, total_params: int) -> dict[str, Any]:
  """The statistics of each matrix of a stacked leaf."""
  if tally.by_batch is None:
    return {}
  (moved, changed, _), products = tally.by_batch
  return {'by_layer': {
      'moved': (moved / total_params).tolist(),
      'changed_codes': (changed / total_params).tolist(),
      'cosine': [_cosine(*each) for each in products.T]}}


def _cosine(qq: float, dd: float, qd: float) -> float | None:
  return float(qd / np.sqrt(qq * dd)) if qq > 0 and dd > 0 else None
