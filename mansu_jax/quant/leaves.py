"""Leaves of any pytree by name, and checks whose errors name the leaf.

`tree_paths` handles nested dicts, such as the params of the models. The
quantizers and transformations accept any pytree; names come from JAX's key
paths.

A leaf may be absent: None, or the `optax.MaskedNode` by which `optax.masked`
and `optax.partition` hide leaves and whole subtrees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

PyTree = Any


def is_absent(node: Any) -> bool:
  """Whether the node is None or an `optax.MaskedNode`."""
  return node is None or isinstance(node, optax.MaskedNode)


def is_placeholder(params: PyTree) -> bool:
  """Whether the argument stands for params of unknown structure.

  `optax.tree_map_params` calls `init` with such an object to find the parts of
  a state that have the structure of the params.
  """
  if is_absent(params) or isinstance(params, (dict, list, tuple)):
    return False
  structure = jax.tree.structure(params)
  return not structure.num_leaves and not structure.children()


def flatten(
    tree: PyTree, is_leaf: Callable[[Any], bool] = is_absent
) -> dict[str, Any]:
  """Returns `{name: leaf}`; a name joins the keys with '/'.

  Args:
    tree: any pytree.
    is_leaf: predicate as in `jax.tree.flatten`; by default absent nodes are
      included.

  Raises:
    ValueError: two leaves have the same name, as in {'a/b': x, 'a': {'b': y}}.
  """
  paths = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
  found = {name_of(path): leaf for path, leaf in paths}
  if len(found) < len(paths):
    names = [name_of(path) for path, _ in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(
        f'Two leaves of a tree have the name {twice[0]!r}, since keys are'
        ' joined with "/": rename a key.')
  return found


def tree_map(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """`jax.tree.map` that also calls `fn` on absent leaves."""
  return jax.tree.map(fn, tree, *rest, is_leaf=is_absent)


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """Maps `fn(name, leaf, *rest_leaves)`, also over absent leaves."""
  call = lambda path, *found: fn(name_of(path), *found)
  return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=is_absent)


def name_of(path: tuple[Any, ...]) -> str:
  """The name of a leaf: the keys of its path, joined with '/'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def align(
    tree: PyTree, params: PyTree, label: str,
    is_leaf: Callable[[Any], bool] = is_absent) -> PyTree:
  """Brings a tree into the structure of the params.

  Args:
    tree: a tree like the params. Its leaves are dropped where the params are
      absent, and a node may be absent where the params have leaves.
    params: any pytree.
    label: name of the tree in messages, e.g. 'The Fisher'.
    is_leaf: predicate for the leaves of the tree; must hold for absent nodes.

  Returns:
    A tree of the structure of the params, in which absent nodes are leaves:
    None where the tree or the params are absent.

  Raises:
    ValueError: one of the two has a leaf that the other lacks.
  """
  found, names = flatten(tree, is_leaf), flatten(params)
  for name, leaf in names.items():
    if not (is_absent(leaf) or name in found or _is_inside_absent(name, found)):
      raise ValueError(
          f'{label} has no leaf {name!r}, but the params do: give it the'
          f' structure of the params. It has {list(found)}.')
  for name in found.keys() - names.keys():
    if not is_absent(found[name]) and not _is_inside_absent(name, names):
      raise ValueError(
          f'{label} has a leaf {name!r} that the params lack: give it the'
          f' structure of the params, {list(names)}.')

  def pick(name, leaf):
    other = found.get(name)
    return None if is_absent(leaf) or is_absent(other) else other

  return map_named(pick, params)


def _is_inside_absent(name: str, flat: dict[str, Any]) -> bool:
  """Whether a flattened tree has an absent node above the name."""
  parts = name.split('/')
  parents = ['/'.join(parts[:i]) for i in range(len(parts))]
  return any(parent in flat and is_absent(flat[parent]) for parent in parents)


def align_shapes(tree: PyTree, params: PyTree, label: str) -> PyTree:
  """`align`; raises ValueError also for a leaf of another shape."""
  aligned = align(tree, params, label)
  others = flatten(params)
  for name, leaf in flatten(aligned).items():
    if leaf is not None and jnp.shape(leaf) != jnp.shape(others[name]):
      raise ValueError(
          f'{label} has shape {jnp.shape(leaf)} at {name!r}; wanted the shape'
          f' of the param, {jnp.shape(others[name])}.')
  return aligned


def flatten_pair(
    params: PyTree, other: PyTree, label: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Flattens two trees by name, without the leaves that both lack.

  Args:
    params: any pytree.
    other: a tree of the same structure and shapes.
    label: name of `other` in messages, e.g. 'The unlearned weights'.

  Raises:
    ValueError: only one of them has a leaf, or its shapes differ.
  """
  found = flatten(align_shapes(other, params, label))
  wanted = {name: leaf for name, leaf in flatten(params).items()
            if not is_absent(leaf)}
  for name in wanted:
    if found[name] is None:
      raise ValueError(
          f'{label} has None at {name!r}, but the params have a leaf there:'
          ' give both in full.')
  return wanted, {name: found[name] for name in wanted}


def cast(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Casts behind a barrier, so that XLA cannot drop the rounding.

  XLA may remove a cast whose result is cast back at once.
  """
  return x if x.dtype == dtype else lax.optimization_barrier(x.astype(dtype))


def is_concrete(tree: PyTree) -> bool:
  """Whether every leaf has a value: no tracer and no abstract shape."""
  return not any(
      isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct))
      for leaf in jax.tree.leaves(tree))


def count_now(count: Callable[..., jax.Array], *args: PyTree) -> int:
  """`int(count(*args))` of concrete arguments, also while JAX traces.

  Under `jax.jit`, `init` still checks concrete masks and grids.
  """
  with jax.ensure_compile_time_eval():
    return int(count(*args))


def check_broadcast(leaf: Any, param: Any, name: str, label: str) -> None:
  """Raises ValueError unless an array broadcasts to the shape of the param."""
  if leaf is None or is_absent(param):
    return
  shape, wanted = jnp.shape(leaf), jnp.shape(param)
  try:
    fits = jnp.broadcast_shapes(shape, wanted) == wanted
  except ValueError:
    fits = False
  if not fits:
    raise ValueError(
        f'{label} has shape {shape} at {name!r}, which does not broadcast to'
        f" the param's {wanted}.")


def check_floating(leaf: Any, name: str, label: str) -> None:
  """Raises ValueError unless the leaf holds floating-point numbers."""
  dtype = jnp.result_type(leaf)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
        f'{label} of {name!r} needs floating-point weights, got {dtype}: cast'
        ' the leaf, or give it None to leave it unchanged.')


def check_finite(leaf: jax.Array, name: str, label: str) -> None:
  """Raises ValueError with the number of NaN and infinite entries."""
  bad = count_now(_count_non_finite, leaf)
  if bad:
    raise ValueError(
        f'{label} {name!r} has {bad} non-finite entries out of'
        f' {jnp.size(leaf)}. One such entry would spoil its whole block: find'
        ' its source, or load the weights again.')


@jax.jit
def _count_non_finite(leaf: jax.Array) -> jax.Array:
  return jnp.sum(~jnp.isfinite(leaf))
