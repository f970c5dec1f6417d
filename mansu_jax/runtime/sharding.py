"""One mesh of devices, and what is split over which of its axes.

Every run has a mesh of three axes; a single device is a mesh of one.

* `data`: rows of a batch; weights are whole on each part.
* `fsdp`: rows of a batch too, and weights along the model's width.
* `tensor`: weights along heads, hidden neurons and the vocabulary.

Which axis of an array goes where is told by its letter, in one table. What is
computed with placed arrays, XLA's partitioner (GSPMD) splits by itself; the
decoder asks only that rows be split, which keeps it from gathering them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import itertools
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.runtime import memory
from mansu_jax.runtime import processes

AXES = ('data', 'fsdp', 'tensor')
# Letter of an array's axis -> axes of the mesh. Others are not split: L
# (layers) is scanned over, H (a head's width) too small, T (positions) mixed.
AXIS_RULES = {
    'B': ('data', 'fsdp'),  # Rows of a batch.
    'D': ('fsdp',),
    'F': ('tensor',),
    'N': ('tensor',),
    'K': ('tensor',),
    'V': ('tensor',),
    'R': AXES,  # Rows of a matrix of which each is computed by itself.
}


def make_mesh(
    options: run_config.MeshConfig,
    devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh that the flags ask for.

  Args:
    options: sizes of its axes, one of which may be -1: what is left.
    devices: what it is made of; None: all that there are.

  Raises:
    ValueError: the sizes do not give as many devices as there are.
  """
  memory.agree(processes.broadcast_from_primary)
  devices = jax.devices() if devices is None else devices
  mesh = jax.make_mesh(
      sizes(options, len(devices)), AXES, devices=devices,
      axis_types=(AxisType.Auto,) * len(AXES))
  if jax.process_count() > 1 and jax.process_count() == len(
      {device.process_index for device in devices}):
    _meet(mesh)
  return mesh


def _meet(mesh: Mesh) -> None:
  """Has the devices along each axis, and axes together, exchange something.

  What fails of the network fails here, and none waits for long: on CPU, JAX
  gives a group up that first meets half a minute apart.
  """
  for count in range(1, len(AXES) + 1):
    for axes in itertools.combinations(AXES, count):
      if math.prod(mesh.shape[name] for name in axes) > 1:
        others = tuple(name for name in AXES if name not in axes)
        jax.block_until_ready(jax.jit(jax.shard_map(
            lambda axes=axes: jax.lax.psum(jnp.ones(1), axes), mesh=mesh,
            in_specs=(), out_specs=PartitionSpec(others)))())


def on_mesh(flow: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """Has a flow run on the mesh of its config; raises as `make_mesh`."""
  @functools.wraps(flow)
  def run(config):
    with jax.set_mesh(make_mesh(config.mesh)):
      return flow(config)

  return run


def sizes(options: run_config.MeshConfig, devices: int) -> tuple[int, ...]:
  """The sizes of the mesh's axes on so many devices; raises as `make_mesh`."""
  found = [getattr(options, name) for name in AXES]
  asked = ', '.join(
      f'--mesh_{name}={size}' for name, size in zip(AXES, found))
  given = math.prod(size for size in found if size > 0)
  if devices % given:
    raise ValueError(
        f'{asked} do not divide the {devices} devices that there are; wanted'
        ' sizes whose product does. Change one, or give -1 for one.')
  found = tuple(devices // given if size < 0 else size for size in found)
  if math.prod(found) != devices:
    raise ValueError(
        f'{asked} make {math.prod(found)} of the {devices} devices that there'
        ' are; wanted all of them. Give -1 for one of the sizes.')
  return found


def spec(
    letters: str, shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
  """Where an array's axes go; axes that do not divide evenly stay whole.

  Args:
    letters: one for each axis.
    shape: of the array.
    mesh: from `make_mesh`.
  """
  out = []
  for letter, size in zip(letters, shape, strict=True):
    names = tuple(name for name in AXIS_RULES.get(letter, ())
                  if name in mesh.shape)  # Others' meshes have axes of theirs.
    parts = math.prod(mesh.shape[name] for name in names)
    out.append(names if names and size % parts == 0 else None)
  return PartitionSpec(*out)


def shard_tree(tree: types.PyTree, letters: dict[str, str]) -> types.PyTree:
  """Puts a tree of arrays on the mesh that is set; without one, nowhere.

  Args:
    tree: of arrays, on the host or on devices.
    letters: by leaf name.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  return tree_paths.map_named(
      lambda name, leaf: shard(leaf, letters[name]), tree)


def shard(x: types.Array | np.ndarray, letters: str) -> types.Array:
  """Puts an array on the mesh that is set; without one, on a device.

  Args:
    x: on the host, whole, or on devices.
    letters: one for each axis.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return jnp.asarray(x)
  where = spec(letters, np.shape(x), mesh)
  if jax.process_count() > 1 and not isinstance(x, jax.Array):
    # `device_put` would send all of it to all, to see that it is the same.
    here = NamedSharding(_everywhere().sharding.mesh, where)
    return jax.make_array_from_callback(np.shape(x), here, x.__getitem__)
  return jax.device_put(x, where)


@functools.partial(jax.jit, out_shardings=PartitionSpec())
def _everywhere() -> types.Array:
  """A number on the mesh that is set, which tells what that is made of."""
  return jnp.zeros(())


def zeros(
    shape: Sequence[int], dtype: jax.typing.DTypeLike, letters: str
) -> types.Array:
  """Zeros on the mesh that is set, made where they lie; see `shard`."""
  mesh = jax.sharding.get_abstract_mesh()
  place = None if mesh.empty else spec(letters, shape, mesh)
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=place)()


def to_host(tree: types.PyTree) -> types.PyTree:
  """Brings arrays to the host, whole; in several processes all must ask.

  Args:
    tree: of arrays, on the host or on devices, of other processes too.

  Returns:
    The same as NumPy arrays, the same in all processes. To be read only.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_to_host, tree)


def to_host_once(x: types.Array | np.ndarray) -> np.ndarray:
  """As `to_host`, of one array, of which JAX keeps no copy on the host."""
  if isinstance(x, jax.Array):
    x = jax.make_array_from_single_device_arrays(
        x.shape, x.sharding, [shard.data for shard in x.addressable_shards])
  return to_host(x)


def _to_host(x: types.Array | np.ndarray) -> np.ndarray:
  if is_here(x):
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def is_here(x: types.Array | np.ndarray) -> bool:
  """Whether this process has all of an array."""
  return not isinstance(x, jax.Array) or (
      x.is_fully_addressable or x.is_fully_replicated)


def row_parts() -> int:
  """Parts that rows are split into on the mesh that is set; 1 without."""
  return _parts(AXIS_RULES['B'])


def weight_parts() -> int:
  """Parts that weights are split into on the mesh that is set; 1 without."""
  return _parts(('fsdp', 'tensor'))


def _parts(names: Sequence[str]) -> int:
  mesh = jax.sharding.get_abstract_mesh()  # Of others: without these axes.
  return math.prod(mesh.shape.get(name, 1) for name in names)


def whole_rows(count: int) -> int:
  """The least number of rows, at least `count`, that splits evenly."""
  return -(-count // row_parts()) * row_parts()


def replicate(x: types.Array) -> types.Array:
  """Asks that all of `x` be on every device, where a mesh is set."""
  return split(x, '.' * x.ndim)


def split(x: types.Array, letters: str) -> types.Array:
  """Asks that `x` be split as its axes' letters say, where a mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, spec(letters, x.shape, mesh))


def split_rows(x: types.Array, letter: str = 'B') -> types.Array:
  """Asks that the first axis of `x` be split as its letter says, if evenly."""
  parts = _parts(AXIS_RULES[letter])
  if parts == 1 or x.shape[0] % parts:
    return x
  return split(x, letter + '.' * (x.ndim - 1))
