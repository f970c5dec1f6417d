"""Converts the state of a loop to a flat tree of NumPy arrays, and back.

`pack` makes the tree that a checkpoint saves; `unpack` checks it and restores
the state.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from mansu_jax import types
from mansu_jax.runtime import sharding


def pack(
    carry: types.PyTree, history: list[dict[str, float]]
) -> dict[str, dict[str, np.ndarray]]:
  """Copies the state to host memory. Collective.

  Args:
    carry: Pytree of arrays. Arrays of size 0 are left out, because Orbax does
      not save them.
    history: Metrics of each step, at least one.

  Returns:
    The leaves of `carry` by number, and the columns of `history` by name.
  """
  return {
      'carry': {
          f'{i:06}': np.array(sharding.to_host(leaf))
          for i, leaf in enumerate(jax.tree.leaves(carry)) if leaf.size},
      'history': {
          key: np.array([row[key] for row in history]) for key in history[0]}}


def unpack(
    packed: Mapping[str, Mapping[str, np.ndarray]], like: types.PyTree
) -> tuple[types.PyTree, list[dict[str, float]]]:
  """Inverse of `pack`.

  Args:
    packed: From `pack`.
    like: Pytree with the structure, shapes and types of the carry.

  Returns:
    The carry and the history.

  Raises:
    ValueError: The arrays do not fit `like`.
  """
  carry, history = packed['carry'], packed['history']
  wanted, structure = jax.tree.flatten(like)
  leaves = [carry.get(f'{i:06}', np.zeros(x.shape, x.dtype))
            for i, x in enumerate(wanted)]
  describe = lambda arrays: [(x.shape, x.dtype) for x in arrays]
  if describe(leaves) != describe(wanted) or len(carry) != sum(
      x.size > 0 for x in wanted):
    raise ValueError('its arrays belong to another loop')
  columns = [column.tolist() for column in history.values()]
  return jax.tree.unflatten(structure, leaves), [
      dict(zip(history, row)) for row in zip(*columns)]
