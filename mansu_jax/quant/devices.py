"""Computation on sharded arrays, and the transfer of results to the host.

JAX has two kinds of mesh axes. Along `Auto` axes the compiler chooses how
results are sharded. Along `Explicit` axes it needs a sharding for each reshape;
the functions here give one sharding for a whole function instead.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import jax
import numpy as np

PyTree = Any
# Axes of the mesh of `mansu_jax.runtime.sharding` that split weights.
_WEIGHT_AXES = ('fsdp', 'tensor')


def elementwise(
    fn: Callable[..., PyTree], like: jax.Array, *args: PyTree) -> PyTree:
  """Calls `fn(*args)`; the result has the shape and sharding of `like`."""
  return with_sharding(jax.typeof(like).sharding, fn, *args)


def with_sharding(
    sharding: jax.sharding.NamedSharding, fn: Callable[..., PyTree],
    *args: PyTree) -> PyTree:
  """Calls `fn(*args)`; on an explicit mesh the result gets the sharding."""
  explicit = jax.sharding.AxisType.Explicit
  if explicit not in sharding.mesh.axis_types:
    return fn(*args)
  return jax.sharding.auto_axes(fn, out_sharding=sharding)(*args)


def replicated(fn: Callable[..., PyTree], first: jax.Array, *args: Any) -> Any:
  """Calls `fn(first, *args)`; on an explicit mesh every device gets the result.

  Args:
    fn: the function.
    first: array whose mesh is used.
    *args: more arrays, then static arguments.
  """
  mesh = jax.typeof(first).sharding.mesh
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  arrays = [x for x in args if isinstance(x, jax.Array)]
  static = [x for x in args if not isinstance(x, jax.Array)]
  return with_sharding(
      sharding, lambda *xs: fn(*xs, *static), first, *arrays)


def weight_parts() -> int:
  """Number of shards of a weight on the current mesh; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape.get(axis, 1) for axis in _WEIGHT_AXES)


def to_host(tree: PyTree) -> PyTree:
  """Gathers arrays to host memory. Collective: every process must call it.

  Args:
    tree: arrays, possibly sharded over the devices of several processes.

  Returns:
    The tree with NumPy arrays, equal in all processes.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_gather, tree)


def _gather(x: jax.Array | np.ndarray) -> np.ndarray:
  if not isinstance(x, jax.Array) or (
      x.is_fully_addressable or x.is_fully_replicated):
    return np.asarray(x)
  # pylint: disable-next=g-import-not-at-top
  from jax.experimental import multihost_utils
  return multihost_utils.process_allgather(x, tiled=True)
