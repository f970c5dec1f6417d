"""The heavy programs of a stage, listed without running them.

A stage room has a module `programs`, whose functions are generators: they yield
a `Program` for each jitted function that the stage calls, a `Hold` whenever
what lies on the devices changes, and `LoweredBy` if flags lower the memory.
`yield` returns the shapes of the program's results, for the next program to
take. `planning.recorder` compiles the programs and adds up what they need.
"""

from __future__ import annotations

from collections.abc import Generator
import dataclasses
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from mansu_jax import types
from mansu_jax.runtime import sharding


@dataclasses.dataclass(frozen=True)
class Program:
  """One jitted function, as a stage calls it.

  Attributes:
    name: shown in the plan.
    fn: the jitted function, or the result of `jax.jit(f).trace(*args)`.
    args: arrays, shapes, and static arguments.
    static: keyword arguments.
    calls: number of calls in a run.
    held: whether its result is part of what the stage holds already.
    at_most: whether `calls` is an upper bound, because values decide how often
      the run calls it.
  """

  name: str
  fn: Any
  args: tuple[Any, ...]
  static: dict[str, Any] = dataclasses.field(default_factory=dict)
  calls: int = 1
  held: bool = False
  at_most: bool = False


@dataclasses.dataclass(frozen=True)
class Hold:
  """From here on these trees of shapes lie on the devices, and no others."""

  trees: dict[str, types.PyTree]


class CircuitSized(NamedTuple):
  """Marks a tree in a `Hold` whose size grows with the circuit."""

  tree: types.PyTree


class LoweredBy(NamedTuple):
  """The flags that lower the memory of the stage, for advice."""

  flags: tuple[str, ...]


# Yields programs, is sent the shapes of their results, returns a value.
Programs = Generator[Program | Hold | LoweredBy, Any, Any]


def program(
    name: str, fn: Any, *args: Any, calls: int = 1, held: bool = False,
    at_most: bool = False, **static: Any) -> Program:
  """A `Program` written like a call."""
  return Program(name, fn, args, static, calls, held, at_most)


def hold(**trees: types.PyTree) -> Hold:
  """A `Hold` written like a call."""
  return Hold(trees)


def lowered_by(*flags: str) -> LoweredBy:
  """A `LoweredBy` written like a call."""
  return LoweredBy(flags)


@dataclasses.dataclass(frozen=True)
class Placer:
  """Gives shapes the shardings that the run gives its arrays.

  Attributes:
    mesh: the devices.
  """

  mesh: Mesh

  def shard(self, x: Any, letters: str) -> jax.ShapeDtypeStruct:
    """The shape of an array that `sharding.shard` splits along `letters`."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(
        self.mesh, sharding.spec(letters, x.shape, self.mesh)))

  def replicate(self, tree: types.PyTree) -> types.PyTree:
    """Shapes of arrays that every device holds whole."""
    whole = NamedSharding(self.mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        np.shape(x), x.dtype, sharding=whole), tree)


def like(tree: types.PyTree, theta: types.PyTree) -> types.PyTree:
  """Shards each leaf like the leaf of theta of its shape; replicates others."""
  shardings = {x.shape: x.sharding for x in jax.tree.leaves(theta)}
  whole = NamedSharding(
      next(iter(shardings.values())).mesh, PartitionSpec())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=shardings.get(x.shape, whole)), tree)


def shapes_of(tree: types.PyTree) -> types.PyTree:
  """Shapes of host arrays, which the compiler may place as it likes."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)
