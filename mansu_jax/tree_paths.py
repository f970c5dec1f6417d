"""Names for the leaves of nested-dict pytrees.

A name joins the keys of a leaf with '/', for example `layers/mlp/gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
  """Returns `{leaf name: leaf}` of a nested dict, including None leaves.

  Example:
    >>> from mansu_jax import tree_paths
    >>> tree_paths.flatten({'b': {'y': 1, 'x': 2}, 'a': None})
    {'a': None, 'b/x': 2, 'b/y': 1}
  """
  return dict(_leaves('', tree))


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
  # Not a recursive closure: its reference cycle would keep the leaves in memory
  # until the next garbage collection.
  if not isinstance(node, dict):
    yield prefix, node
    return
  for key in sorted(node):
    yield from _leaves(f'{prefix}/{key}' if prefix else str(key), node[key])


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
  """Inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split('/')
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """Maps `fn(name, leaf, *rest_leaves)` over nested dicts with equal keys."""
  others = [flatten(r) for r in rest]
  return unflatten({
      name: fn(name, leaf, *(o[name] for o in others))
      for name, leaf in flatten(tree).items()
  })


def check_same_structure(got: PyTree, want: PyTree, label: str) -> None:
  """Raises ValueError with the name of the first leaf that differs.

  Args:
    got: a nested dict of arrays or shapes.
    want: the nested dict whose keys and shapes `got` must have.
    label: name of `got` in messages.
  """
  got_flat, want_flat = flatten(got), flatten(want)
  for name in want_flat:
    if name not in got_flat:
      raise ValueError(f'{label} lacks the leaf {name!r}.')
  for name in got_flat:
    if name not in want_flat:
      raise ValueError(f'{label} has the unknown leaf {name!r}.')
  for name, leaf in want_flat.items():
    shapes = [getattr(x, 'shape', None) for x in (got_flat[name], leaf)]
    if shapes[0] != shapes[1]:
      raise ValueError(
          f'{label} has shape {shapes[0]} at {name!r}; wanted {shapes[1]}.')


def count(tree: PyTree) -> int:
  """Number of scalars in a tree of arrays or shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
