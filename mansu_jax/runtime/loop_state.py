"""The state of a loop as one flat tree of NumPy arrays, to be kept."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from mansu_jax import types
from mansu_jax.runtime import sharding


def pack(
    carry: types.PyTree, history: list[dict[str, float]]
) -> dict[str, dict[str, np.ndarray]]:
  """The state, in memory of its own; of several processes all must ask.

  Args:
    carry: pytree of arrays, the leaves of which are numbered; those of size 0,
      of which Orbax saves none, are left out.
    history: of all steps, one row at least; becomes its columns.
  """
  return {
      'carry': {
          f'{i:06}': np.array(sharding.to_host(leaf))
          for i, leaf in enumerate(jax.tree.leaves(carry)) if leaf.size},
      'history': {
          key: np.array([row[key] for row in history]) for key in history[0]}}


def unpack(
    found: Mapping[str, Mapping[str, np.ndarray]], like: types.PyTree
) -> tuple[types.PyTree, list[dict[str, float]]]:
  """Inverse of `pack`.

  Args:
    found: what `pack` gave.
    like: of the structure, shapes and types of the carry.

  Raises:
    ValueError: it is of something else.
  """
  carry, history = found['carry'], found['history']
  wanted, shape = jax.tree.flatten(like)
  leaves = [carry.get(f'{i:06}', np.zeros(x.shape, x.dtype))
            for i, x in enumerate(wanted)]
  describe = lambda arrays: [(x.shape, x.dtype) for x in arrays]
  if describe(leaves) != describe(wanted) or len(carry) != sum(
      x.size > 0 for x in wanted):
    raise ValueError('its arrays are not of this loop')
  columns = [column.tolist() for column in history.values()]
  return jax.tree.unflatten(shape, leaves), [
      dict(zip(history, row)) for row in zip(*columns)]
