"""Names for the leaves of nested-dict pytrees, and masks made from the names.

A leaf is named by its keys joined with '/', for example `layers/mlp/gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import re
from typing import Any

import jax

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
  """Returns `{leaf name: leaf}` of a nested dict; None leaves are kept."""
  return dict(_leaves('', tree))


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
  # No closure that calls itself: it would keep the leaves till the next
  # collection of garbage, each a stack of matrices.
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
  """Maps `fn(name, leaf, *rest_leaves)` over nested dicts of equal keys."""
  others = [flatten(r) for r in rest]
  return unflatten({
      name: fn(name, leaf, *(o[name] for o in others))
      for name, leaf in flatten(tree).items()
  })


def match(tree: PyTree, rules: Sequence[tuple[str, Any]]) -> PyTree:
  """Gives every leaf the value of the first rule whose pattern fits its name.

  Args:
    tree: nested dict.
    rules: ordered `(regular expression, value)`; the whole name must match.

  Returns:
    A tree of the same keys that holds the values.

  Raises:
    ValueError: a leaf fits no rule, or a rule fits no leaf.
  """
  compiled = [(re.compile(pattern), value) for pattern, value in rules]
  used = [False] * len(rules)
  out = {}
  for name in flatten(tree):
    for i, (pattern, value) in enumerate(compiled):
      if pattern.fullmatch(name):
        used[i], out[name] = True, value
        break
    else:
      raise ValueError(
          f'Parameter {name!r} matches none of the patterns'
          f' {[p for p, _ in rules]}: every parameter must be covered; add a'
          ' rule for it.')
  unused = [pattern for (pattern, _), hit in zip(rules, used) if not hit]
  if unused:
    raise ValueError(
        f'Patterns {unused} match no parameter; the parameters are'
        f' {list(out)}. Correct or remove them.')
  return unflatten(out)


def check_same_structure(got: PyTree, want: PyTree, what: str) -> None:
  """Raises ValueError naming the first leaf in which two trees differ."""
  got_flat, want_flat = flatten(got), flatten(want)
  for name in want_flat:
    if name not in got_flat:
      raise ValueError(f'{what} lacks the leaf {name!r}.')
  for name in got_flat:
    if name not in want_flat:
      raise ValueError(f'{what} has a leaf {name!r} that is not expected.')
  for name, leaf in want_flat.items():
    shapes = [getattr(x, 'shape', None) for x in (got_flat[name], leaf)]
    if shapes[0] != shapes[1]:
      raise ValueError(
          f'{what} has shape {shapes[0]} at {name!r}; wanted {shapes[1]}.')


def count(tree: PyTree) -> int:
  """Number of scalars in a tree of arrays (or of shapes)."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
