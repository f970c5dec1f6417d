"""Shards arrays over a mesh of devices.

Decorate a flow with `on_mesh`, which sets the mesh of its configuration. Within
it, `shard` places an array on the mesh, `constrain` and `constrain_rows`
annotate arrays within a program, and `to_host` gathers them.

The mesh has three axes; a single device is a mesh of size 1.

* `data` splits the rows of a batch and replicates the weights.
* `fsdp` splits the rows of a batch, and the weights along the model width.
* `tensor` splits the weights along heads, hidden neurons and the vocabulary.

Each axis of an array has a letter; `AXIS_RULES` maps letters to axes of the
mesh. XLA's partitioner (GSPMD) derives the sharding of all computations from
the sharding of their inputs. Only the decoder adds constraints: its rows stay
split, so that XLA does not gather them.
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

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.runtime import memory
from mansu_jax.runtime import processes

AXES = ('data', 'fsdp', 'tensor')
# Letter of an array's axis -> axes of the mesh. Other letters are not split: L
# (layers) is scanned over, H (head width) is small, T (tokens) is mixed.
AXIS_RULES = {
    'B': ('data', 'fsdp'),  # Rows of a batch.
    'D': ('fsdp',),
    'F': ('tensor',),
    'N': ('tensor',),
    'K': ('tensor',),
    'V': ('tensor',),
    'R': AXES,  # Rows of a matrix that are computed independently.
}


def make_mesh(
    options: run_config.MeshConfig,
    devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes the mesh of a configuration.

  Args:
    options: Sizes of the axes; one of them may be -1, for the remaining
      devices.
    devices: Devices of the mesh; None for all.

  Raises:
    ValueError: The product of the sizes is not the number of devices.
  """
  memory.synchronize(processes.broadcast_from_primary)
  devices = jax.devices() if devices is None else devices
  mesh = jax.make_mesh(
      axis_sizes(options, len(devices)), AXES, devices=devices,
      axis_types=(AxisType.Auto,) * len(AXES))
  if jax.process_count() > 1 and jax.process_count() == len(
      {device.process_index for device in devices}):
    _connect(mesh)
  return mesh


def _connect(mesh: Mesh) -> None:
  """Runs one collective over each set of mesh axes.

  Errors of the network then appear at the start. On CPU, JAX also gives up on
  a first collective whose processes call it more than half a minute apart.
  """
  for count in range(1, len(AXES) + 1):
    for axes in itertools.combinations(AXES, count):
      if math.prod(mesh.shape[name] for name in axes) > 1:
        others = tuple(name for name in AXES if name not in axes)
        jax.block_until_ready(jax.jit(jax.shard_map(
            lambda axes=axes: jax.lax.psum(jnp.ones(1), axes), mesh=mesh,
            in_specs=(), out_specs=PartitionSpec(others)))())


def on_mesh(flow: Callable[..., Any]) -> Callable[..., Any]:
  """Decorator: runs a flow on the mesh of its configuration.

  Args:
    flow: Function of a `RunConfig` and options.

  Returns:
    The function, which sets the mesh of `config.mesh` while it runs, and also
    raises what `make_mesh` raises.
  """
  @functools.wraps(flow)
  def run(config, **options):
    with jax.set_mesh(make_mesh(config.mesh)):
      return flow(config, **options)

  return run


def axis_sizes(
    options: run_config.MeshConfig, devices: int) -> tuple[int, ...]:
  """Sizes of the mesh axes on a number of devices; raises as `make_mesh`."""
  found = [getattr(options, name) for name in AXES]
  given = ', '.join(
      f'--mesh_{name}={size}' for name, size in zip(AXES, found))
  product = math.prod(size for size in found if size > 0)
  if devices % product:
    raise ValueError(
        f'The product of {given} does not divide the number of devices,'
        f' {devices}. Change a size, or give -1 for one.')
  found = tuple(devices // product if size < 0 else size for size in found)
  if math.prod(found) != devices:
    raise ValueError(
        f'The mesh sizes {given} use {math.prod(found)} of {devices} devices;'
        ' wanted all. Give -1 for one size.')
  return found


def spec(
    letters: str, shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
  """Partition spec of an array.

  Axes whose size is not divisible by the number of shards are replicated.

  Args:
    letters: One letter for each axis.
    shape: Shape of the array.
    mesh: From `make_mesh`.
  """
  out = []
  for letter, size in zip(letters, shape, strict=True):
    # The caller's mesh may lack these axes.
    names = tuple(name for name in AXIS_RULES.get(letter, ())
                  if name in mesh.shape)
    shards = math.prod(mesh.shape[name] for name in names)
    out.append(names if names and size % shards == 0 else None)
  return PartitionSpec(*out)


def shard(x: types.Array | np.ndarray, letters: str) -> types.Array:
  """Shards an array over the current mesh; without one, puts it on a device.

  Args:
    x: The full array, on the host or on devices.
    letters: One letter for each axis.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return jnp.asarray(x)
  partition = spec(letters, np.shape(x), mesh)
  if jax.process_count() > 1 and not isinstance(x, jax.Array):
    # `device_put` would compare the whole array between all processes.
    sharding = NamedSharding(_replicated_zero().sharding.mesh, partition)
    return jax.make_array_from_callback(np.shape(x), sharding, x.__getitem__)
  return jax.device_put(x, partition)


@functools.partial(jax.jit, out_shardings=PartitionSpec())
def _replicated_zero() -> types.Array:
  """A scalar on the current mesh, whose sharding has the concrete mesh."""
  return jnp.zeros(())


def zeros(
    shape: Sequence[int], dtype: jax.typing.DTypeLike, letters: str
) -> types.Array:
  """Zeros that each device of the current mesh creates itself; see `shard`."""
  mesh = jax.sharding.get_abstract_mesh()
  partition = None if mesh.empty else spec(letters, shape, mesh)
  return jax.jit(
      lambda: jnp.zeros(shape, dtype), out_shardings=partition)()


def to_host(tree: types.PyTree) -> types.PyTree:
  """Gathers arrays to host memory. Collective: every process must call it.

  Args:
    tree: Arrays, on the host or on devices of any process.

  Returns:
    NumPy arrays, equal in all processes. They may be read-only.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_to_host, tree)


def to_host_uncached(x: types.Array | np.ndarray) -> np.ndarray:
  """As `to_host` for one array, of which JAX then caches no host copy."""
  if isinstance(x, jax.Array):
    x = jax.make_array_from_single_device_arrays(
        x.shape, x.sharding, [shard.data for shard in x.addressable_shards])
  return to_host(x)


def _to_host(x: types.Array | np.ndarray) -> np.ndarray:
  if is_local(x):
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def is_local(x: types.Array | np.ndarray) -> bool:
  """Whether this process can read the full array without communication."""
  return not isinstance(x, jax.Array) or (
      x.is_fully_addressable or x.is_fully_replicated)


def num_row_shards() -> int:
  """Number of shards of a batch's rows on the current mesh; 1 without one."""
  return _num_shards(AXIS_RULES['B'])


def _num_shards(names: Sequence[str]) -> int:
  mesh = jax.sharding.get_abstract_mesh()  # The caller's may lack these axes.
  return math.prod(mesh.shape.get(name, 1) for name in names)


def round_up_rows(count: int) -> int:
  """Rounds a number of rows up to a multiple of `num_row_shards`."""
  return -(-count // num_row_shards()) * num_row_shards()


def replicate(x: types.Array) -> types.Array:
  """Constrains an array to be replicated on all devices of the current mesh."""
  return constrain(x, '.' * x.ndim)


def constrain(x: types.Array, letters: str) -> types.Array:
  """Constrains the sharding of an array, within a program on a mesh.

  Args:
    x: The array.
    letters: One letter for each axis.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, spec(letters, x.shape, mesh))


def constrain_rows(x: types.Array, letter: str = 'B') -> types.Array:
  """Constrains the first axis of an array to be split if it divides evenly."""
  shards = _num_shards(AXIS_RULES[letter])
  if shards == 1 or x.shape[0] % shards:
    return x
  return constrain(x, letter + '.' * (x.ndim - 1))
