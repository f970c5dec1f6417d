"""Leaves of any pytree by name, and the checks that name the one at fault.

`tree_paths` knows nested dicts, as the models' params are. The quantizers and
transforms accept any pytree, so they take names from JAX's key paths.

A place of a tree may be absent: None, or the `optax.MaskedNode` by which
`optax.masked` and `optax.partition` hide leaves and whole subtrees.
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
  """Whether there is no leaf here: None or an `optax.MaskedNode`."""
  return node is None or isinstance(node, optax.MaskedNode)


def is_placeholder(params: PyTree) -> bool:
  """Whether this stands for params of unknown structure.

  `optax.tree_map_params` calls `init` with such an object, to learn which parts
  of a state are trees like the params.
  """
  if is_absent(params) or isinstance(params, (dict, list, tuple)):
    return False
  structure = jax.tree.structure(params)
  return not structure.num_leaves and not structure.children()


def named(
    tree: PyTree, is_leaf: Callable[[Any], bool] = is_absent
) -> dict[str, Any]:
  """Returns `{name: leaf}`, keys joined with '/'; absent ones are kept.

  Raises:
    ValueError: two leaves have one name, as of {'a/b': x, 'a': {'b': y}}.
  """
  paths = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
  found = {name_of(path): leaf for path, leaf in paths}
  if len(found) < len(paths):
    names = [name_of(path) for path, _ in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(
        f'Two leaves of a tree have the name {twice[0]!r}, since its keys are'
        ' joined with "/": rename a key.')
  return found


def tree_map(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """`jax.tree.map` that hands `fn` the absent leaves too."""
  return jax.tree.map(fn, tree, *rest, is_leaf=is_absent)


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """Maps `fn(name, leaf, *rest_leaves)`, the absent leaves too."""
  call = lambda path, *found: fn(name_of(path), *found)
  return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=is_absent)


def name_of(path: tuple[Any, ...]) -> str:
  """A leaf's name: the keys of its path, joined with '/'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def align(
    tree: PyTree, params: PyTree, what: str,
    is_leaf: Callable[[Any], bool] = is_absent) -> PyTree:
  """Brings a tree into the structure of the params.

  Args:
    tree: a tree like the params. It may hold leaves where the params are
      absent, which are dropped, and may be absent itself where they are not.
    params: any pytree.
    what: names the tree in messages, e.g. 'The Fisher'.
    is_leaf: of the tree; true of absent nodes as well.

  Returns:
    A tree of the structure of the params (absent places are its leaves), None
    wherever one of the two is absent.

  Raises:
    ValueError: one of them has a leaf at which the other has no place.
  """
  found, names = named(tree, is_leaf), named(params)
  for name, leaf in names.items():
    if not (is_absent(leaf) or name in found or _above(name, found)):
      raise ValueError(
          f'{what} has no leaf {name!r}, but the params do: give it the'
          f' structure of the params. It has {list(found)}.')
  for name in found.keys() - names.keys():
    if not is_absent(found[name]) and not _above(name, names):
      raise ValueError(
          f'{what} has a leaf {name!r} that the params lack: give it the'
          f' structure of the params, {list(names)}.')

  def pick(name, leaf):
    other = found.get(name)
    return None if is_absent(leaf) or is_absent(other) else other

  return map_named(pick, params)


def _above(name: str, tree: dict[str, Any]) -> bool:
  """Whether a tree by name is absent at a subtree that holds the name."""
  parts = name.split('/')
  return any(
      '/'.join(parts[:i]) in tree and is_absent(tree['/'.join(parts[:i])])
      for i in range(len(parts)))


def align_shapes(tree: PyTree, params: PyTree, what: str) -> PyTree:
  """As `align`; raises ValueError also at a leaf of another shape."""
  aligned = align(tree, params, what)
  others = named(params)
  for name, leaf in named(aligned).items():
    if leaf is not None and jnp.shape(leaf) != jnp.shape(others[name]):
      raise ValueError(
          f'{what} has shape {jnp.shape(leaf)} at {name!r}; wanted the'
          f" param's {jnp.shape(others[name])}.")
  return aligned


def pairs(
    params: PyTree, got: PyTree, what: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The leaves of two trees by name, without those that both lack.

  Args:
    params: any pytree.
    got: of its structure and shapes.
    what: names it in messages, e.g. 'The unlearned weights'.

  Raises:
    ValueError: a leaf that only one of them has, or of another shape.
  """
  found = named(align_shapes(got, params, what))
  wanted = {name: leaf for name, leaf in named(params).items()
            if not is_absent(leaf)}
  for name in wanted:
    if found[name] is None:
      raise ValueError(
          f'{what} has None at {name!r}, but the params have a leaf there: give'
          ' both in full.')
  return wanted, {name: found[name] for name in wanted}


def cast(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Casts for good: XLA may drop a cast that is cast back at once."""
  return x if x.dtype == dtype else lax.optimization_barrier(x.astype(dtype))


def is_concrete(tree: PyTree) -> bool:
  """Whether every leaf holds values now (no tracer, no abstract shape)."""
  return not any(
      isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct))
      for leaf in jax.tree.leaves(tree))


def count_now(count: Callable[..., jax.Array], *args: PyTree) -> int:
  """`int(count(*args))` of concrete arguments, under `jax.jit` too.

  An `init` that is traced still has concrete masks and grids to check.
  """
  with jax.ensure_compile_time_eval():
    return int(count(*args))


def elementwise(
    fn: Callable[..., PyTree], like: jax.Array, *args: PyTree) -> PyTree:
  """Calls `fn(*args)`, which has the shape of `like` and is sharded as it is.

  Where axes of a mesh are explicit, JAX asks for the sharding of each reshape;
  within `fn` the compiler chooses.
  """
  return sharded_as(jax.typeof(like).sharding, fn, *args)


def sharded_as(
    sharding: jax.sharding.NamedSharding, fn: Callable[..., PyTree],
    *args: PyTree) -> PyTree:
  """As `elementwise`, with the sharding of the result given."""
  explicit = jax.sharding.AxisType.Explicit
  if explicit not in sharding.mesh.axis_types:
    return fn(*args)
  return jax.sharding.auto_axes(fn, out_sharding=sharding)(*args)


def whole(fn: Callable[..., PyTree], first: jax.Array, *args: Any) -> PyTree:
  """Calls `fn(first, *args)`, whose results every device gets in full.

  `args` may hold what is no array; see `elementwise`.
  """
  mesh = jax.typeof(first).sharding.mesh
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  arrays = [x for x in args if isinstance(x, jax.Array)]
  others = [x for x in args if not isinstance(x, jax.Array)]
  return sharded_as(place, lambda *xs: fn(*xs, *others), first, *arrays)


def check_broadcast(got: Any, param: Any, name: str, what: str) -> None:
  """Raises ValueError unless an array broadcasts to the param's shape."""
  if got is None or is_absent(param):
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
  bad = count_now(_not_finite, leaf)
  if bad:
    raise ValueError(
        f'{what} {name!r} has {bad} non-finite entries of {jnp.size(leaf)}:'
        ' one would spoil its whole block. Find where they arose, or load'
        ' the weights again.')


@jax.jit
def _not_finite(leaf: jax.Array) -> jax.Array:
  return jnp.sum(~jnp.isfinite(leaf))
