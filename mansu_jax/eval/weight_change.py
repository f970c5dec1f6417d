"""Compares the weights of two models, by leaf and by layer.

Leaves under `layers/` have a leading axis of layers. Any other leaf counts as
one layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.runtime import sharding

_STACKED = 'layers/'


class Change(NamedTuple):
  """Sums over the weights in each layer of a leaf (L = 1 if not stacked)."""

  size: np.ndarray  # int64 [L], number of weights
  moved: np.ndarray  # int64 [L], number of weights that differ
  edit: np.ndarray  # float64 [L], d . d with d = after - before
  before: np.ndarray  # float64 [L], before . before
  after: np.ndarray  # float64 [L], after . after
  both: np.ndarray  # float64 [L], before . after

  def total(self) -> Change:
    """Adds the layers up: fields [1]."""
    return Change(*(field.sum(keepdims=True) for field in self))

  def statistics(self, layer: int = 0) -> dict[str, Any]:
    """Statistics of one layer, JSON-able.

    Returns:
      size: Number of weights.
      moved: Share of the weights that differ.
      relative: |d| / |before|; None if `before` is zero.
      cosine: Cosine between before and after; None if either is zero.
    """
    size, moved, edit, before, after, both = (
        field[layer].item() for field in self)
    norms = (before * after) ** 0.5
    return {
        'size': size, 'moved': moved / size,
        'relative': (edit / before) ** 0.5 if before else None,
        'cosine': both / norms if norms else None}


def compare(
    before: types.Params, after: types.Params) -> dict[str, Change]:
  """Compares two models of the same structure and shapes.

  Args:
    before: Params of the first model.
    after: Params of the second model.

  Returns:
    `{leaf name: Change}`.

  Example:
    >>> changes = compare(
    ...     {'embed': jnp.array([[3.0, 4.0]])},
    ...     {'embed': jnp.array([[3.0, 4.5]])})
    >>> changes['embed'].statistics()['moved']
    0.5
    >>> changes['embed'].statistics()['relative']
    0.1
  """
  others = tree_paths.flatten(after)
  return {name: _change(name, leaf, others[name])
          for name, leaf in tree_paths.flatten(before).items()}


def _change(name: str, before: types.Array, after: types.Array) -> Change:
  layers = before.shape[0] if name.startswith(_STACKED) else 1
  moved, *products = sharding.to_host(row_sums(before, after))
  by_layer = lambda rows, dtype: np.asarray(rows, dtype).reshape(
      layers, -1).sum(1)
  return Change(
      np.full(layers, before.size // layers), by_layer(moved, np.int64),
      *(by_layer(p, np.float64) for p in products))


@jax.jit
def row_sums(before, after):
  """Sums over the last axis on the device; the host adds them in float64."""
  moved = jnp.sum(before != after, axis=-1, dtype=jnp.int32)
  before, after = (x.astype(jnp.float32) for x in (before, after))
  edit = after - before
  return moved, *(
      jnp.sum(x * y, axis=-1) for x, y in (
          (edit, edit), (before, before), (after, after), (before, after)))


def total(changes: Iterable[Change]) -> Change:
  """Adds the changes of several leaves up: fields [1]."""
  return Change(*map(sum, zip(*(change.total() for change in changes))))


def describe(changes: dict[str, Change]) -> dict[str, Any]:
  """Statistics for the run record, JSON-able.

  Returns:
    total: Statistics over all leaves.
    leaves: Statistics of each leaf, with `by_layer` if it is stacked.
    layers: Statistics of each layer over its leaves.
  """
  stacked = {name: c for name, c in changes.items()
             if name.startswith(_STACKED)}
  leaves = {name: change.total().statistics()
            for name, change in changes.items()}
  for name, change in stacked.items():
    leaves[name]['by_layer'] = [
        change.statistics(layer) for layer in range(change.size.size)]
  layers = Change(*map(sum, zip(*stacked.values()))) if stacked else None
  return {
      'total': total(changes.values()).statistics(), 'leaves': leaves,
      'layers': [layers.statistics(i) for i in range(layers.size.size)]
                if layers else []}
