"""Leaves of any pytree by name, and the checks that name the one at fault.

`tree_paths` knows nested dicts, as the models' params are. The quantizers and
transforms accept any pytree, so they take names from JAX's key paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

PyTree = Any


def _is_none(node: Any) -> bool:
  return node is None


def named(tree: PyTree) -> dict[str, Any]:
  """Returns `{name: leaf}`, keys joined with '/'; None leaves are kept."""
  paths = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)[0]
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in paths
  }


def tree_map(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """`jax.tree.map` that hands `fn` the None leaves too."""
  return jax.tree.map(fn, tree, *rest, is_leaf=_is_none)


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """Maps `fn(name, leaf, *rest_leaves)`, the None leaves too."""
  call = lambda path, *found: fn(
      jax.tree_util.keystr(path, simple=True, separator='/'), *found)
  return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=_is_none)


def cast(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Casts for good: XLA may drop a cast that is cast back at once."""
  return lax.optimization_barrier(x.astype(dtype))


def is_concrete(tree: PyTree) -> bool:
  """Whether every leaf holds values now (no tracer, no abstract shape)."""
  return not any(
      isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct))
      for leaf in jax.tree.leaves(tree))


def check_names(got: PyTree, params: PyTree, what: str) -> None:
  """Raises ValueError at the first leaf that only one of the trees has."""
  got_names, names = named(got), named(params)
  for name in names:
    if name not in got_names:
      raise ValueError(
          f'{what} has no leaf {name!r}, but the params do: give it the'
          f' structure of the params. It has {list(got_names)}.')
  for name in got_names:
    if name not in names:
      raise ValueError(
          f'{what} has a leaf {name!r} that the params lack: give it the'
          f' structure of the params, {list(names)}.')
  structures = [jax.tree.structure(t, is_leaf=_is_none) for t in (got, params)]
  if structures[0] != structures[1]:  # A tuple for a list, say.
    raise ValueError(
        f'{what} has the leaves of the params in other containers:'
        f' {structures[0]}; wanted {structures[1]}.')


def check_shapes(got: PyTree, params: PyTree, what: str) -> None:
  """Raises ValueError unless each leaf is None or has the param's shape."""
  check_names(got, params, what)
  others = named(params)
  for name, leaf in named(got).items():
    if leaf is None or others[name] is None:
      continue
    if jnp.shape(leaf) != jnp.shape(others[name]):
      raise ValueError(
          f'{what} has shape {jnp.shape(leaf)} at {name!r}; wanted the'
          f" param's {jnp.shape(others[name])}.")


def check_broadcast(got: Any, param: Any, name: str, what: str) -> None:
  """Raises ValueError unless an array broadcasts to the param's shape."""
  if got is None or param is None:
    return
  shape, wanted = jnp.shape(got), jnp.shape(param)
  try:
    fits = jnp.broadcast_shapes(shape, wanted) == wanted
  except ValueError:
    fits = False
  if not fits:
    raise ValueError(
        f'{what} has shape {shape} at {name!r}, which does not broadcast to'
        f" the param's {wanted}.")


def check_floating(leaf: Any, name: str, what: str) -> None:
  """Raises ValueError unless the leaf holds floating-point numbers."""
  dtype = jnp.result_type(leaf)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
        f'{what} of {name!r} needs floating-point weights, got {dtype}: cast'
        ' the leaf, or give it None to leave it alone.')


def check_finite(leaf: jax.Array, name: str, what: str) -> None:
  """Raises ValueError with the number of NaN and infinite entries."""
  bad = int(jnp.size(leaf) - jnp.sum(jnp.isfinite(leaf)))
  if bad:
    raise ValueError(
        f'{what} {name!r} has {bad} non-finite entries of {jnp.size(leaf)}:'
        ' one would spoil its whole block. Find where they arose, or load'
        ' the weights again.')
