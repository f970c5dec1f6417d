"""Abstract calls: programs are compiled, not run, and what they take is kept.

A stage says what lies on the devices while it runs, and calls its programs as
the run does, on shapes instead of arrays. Each call gives the shapes of its
results, placed as the compiler places them, for the next one to take.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from typing import Any

from absl import logging
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from mansu_jax import types
from mansu_jax.planning import cost as cost_lib
from mansu_jax.planning import topology
from mansu_jax.runtime import memory
from mansu_jax.runtime import sharding

# Of the bound that memory, products and links set, what is reached.
EFFICIENCY = 0.5
# As compilers say it; in the first and second group what it takes, in all.
_OUT_OF_MEMORY = re.compile(
    r'(?:Used |\()([\d.]+)([KMGT])\)? (?:of|exceeds available HBM)'
    r' \(?[\d.]+[KMGT]\)?(?: hbm)?', re.IGNORECASE)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """A program, as a stage calls it.

  Attributes:
    name: of the program.
    calls: how often.
    bytes: for itself, a device: results, intermediates and code, and arguments
      that the stage does not hold.
    refused: why the compiler did not compile it; empty where it did.
    cost: of one call, on all devices.
    seconds: of one call, estimated.
  """

  name: str
  calls: int
  bytes: float
  refused: str
  cost: cost_lib.Cost
  seconds: float


@dataclasses.dataclass(kw_only=True)
class Part:
  """Of a stage, while it holds the same.

  Attributes:
    held: bytes on each device all the while, by what they are.
    calls: its programs.
  """

  held: dict[str, float]
  calls: list[Call] = dataclasses.field(default_factory=list)

  @property
  def bytes(self) -> float:
    """The peak, a device."""
    return sum(self.held.values()) + max((c.bytes for c in self.calls),
                                         default=0)


@dataclasses.dataclass(kw_only=True)
class Stage:
  """A stage of the run.

  Attributes:
    name: as in the record's `stages`.
    flags: those that lower its memory.
    parts: one after the other.
  """

  name: str
  flags: str
  parts: list[Part] = dataclasses.field(default_factory=list)

  @property
  def peak(self) -> Part:
    """The part that needs most."""
    return max(self.parts, key=lambda part: part.bytes)

  @property
  def bytes(self) -> float:
    """The peak, a device."""
    return self.peak.bytes

  @property
  def held(self) -> dict[str, float]:
    """Bytes that the part with the peak holds, by what they are."""
    return self.peak.held

  @property
  def largest(self) -> Call | None:
    """The call that needs most there, beside what is held."""
    return max(self.peak.calls, key=lambda c: c.bytes, default=None)

  @property
  def calls(self) -> list[Call]:
    """All programs."""
    return [call for part in self.parts for call in part.calls]

  @property
  def flops(self) -> float:
    """Of all calls, on all devices."""
    return sum(c.calls * c.cost.flops for c in self.calls)

  @property
  def seconds(self) -> float:
    """Estimated, without compiling."""
    return sum(c.calls * c.seconds for c in self.calls)


class Recorder:
  """Compiles for a mesh of devices of one kind, and keeps account."""

  def __init__(self, mesh: Mesh, chip: topology.Chip):
    self._mesh, self._chip = mesh, chip
    self._compiled: dict[Any, tuple[Any, ...]] = {}
    self._held: list[types.PyTree] = []
    self.stages: list[Stage] = []
    self.compile_seconds = 0.0

  @contextlib.contextmanager
  def stage(self, name: str, flags: str = '', **held: types.PyTree):
    """A stage, while which these trees lie on the devices."""
    self.stages.append(Stage(name=name, flags=flags))
    self.then(**held)
    yield
    logging.info('planned: %s', name)

  def then(self, **held: types.PyTree) -> None:
    """From here on in the stage these trees lie on the devices instead."""
    self._held = list(held.values())
    self.stages[-1].parts.append(Part(held={
        what: self.size(tree) for what, tree in held.items()}))

  def place(self, x: Any, letters: str) -> jax.ShapeDtypeStruct:
    """A shape, placed as `sharding.shard` places an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(
        self._mesh, sharding.spec(letters, x.shape, self._mesh)))

  def whole(self, tree: types.PyTree) -> types.PyTree:
    """Shapes of arrays that are whole on every device."""
    place = NamedSharding(self._mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        np.shape(x), x.dtype, sharding=place), tree)

  def size(self, tree: types.PyTree) -> float:
    """Bytes a device."""
    return float(sum(map(memory.bytes_of, jax.tree.leaves(tree))))

  def call(
      self, name: str, fn: Any, *args: Any, calls: int = 1,
      held: bool = False, **static: Any) -> types.PyTree:
    """Compiles a jitted function for these shapes, as part of the stage.

    Args:
      name: of the program, for the account.
      fn: jitted, or what `jax.jit(f).trace(*args)` gave.
      *args: arrays, shapes, and what is static under jit.
      calls: how often the run calls it so.
      held: whether its result is among what the stage holds already.
      **static: keyword arguments.

    Returns:
      The shapes of its results, placed.
    """
    key = (id(fn), jax.tree.structure((args, static)), tuple(
        (x.shape, x.dtype, x.sharding) if isinstance(x, jax.ShapeDtypeStruct)
        else _key(x) for x in jax.tree.leaves((args, static))))
    if key not in self._compiled:  # `fn` is kept too: an id is of one object.
      self._compiled[key] = (fn, *self._compile(name, fn, args, static))
    _, own, refused, cost, out = self._compiled[key]
    known = {id(x) for tree in self._held for x in jax.tree.leaves(tree)}
    given = [x for x in jax.tree.leaves((args, static))
             if isinstance(x, jax.ShapeDtypeStruct)]
    own += self.size([x for x in given if id(x) not in known])
    own -= self.size(out) if held else 0
    self.stages[-1].parts[-1].calls.append(Call(
        name=name, calls=calls, bytes=own, refused=refused, cost=cost,
        seconds=self._seconds(cost, self.size((given, out)))))
    return out

  def _compile(self, name, fn, args, static):
    start = time.monotonic()
    traced = fn if hasattr(fn, 'jaxpr') else fn.trace(*args, **static)
    out = traced.out_info
    try:
      done = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
      if not str(error).startswith('RESOURCE_EXHAUSTED'):
        raise
      found = _OUT_OF_MEMORY.search(str(error))
      own = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
      own = max(0.0, own - self.size([  # Arguments are among what it used.
          x for x in jax.tree.leaves((args, static))
          if isinstance(x, jax.ShapeDtypeStruct)]))
      refused = found[0] if found else ' '.join(str(error).split())[:200]
      logging.warning('%s does not compile: %s', name, refused)
      out = self.whole(out)
    else:
      stats = done.memory_analysis()
      own = (stats.temp_size_in_bytes + stats.output_size_in_bytes
             - stats.alias_size_in_bytes + stats.generated_code_size_in_bytes)
      refused = ''
      out = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=place), out, done.output_shardings)
    seconds = time.monotonic() - start
    self.compile_seconds += seconds
    logging.info('compiled: %s, %.1f s', name, seconds)
    return float(own), refused, cost_lib.count(traced.jaxpr), out

  def _seconds(self, cost: cost_lib.Cost, moved: float) -> float:
    """Roofline of products, memory and links, at `EFFICIENCY`.

    Rows are split over `data` and `fsdp`. Weights are split over `tensor`;
    each product gathers what `fsdp` has split of them. What has no products
    moves its arguments and results, of so many bytes a device, once.
    """
    chip, size, shape = self._chip, self._mesh.size, self._mesh.shape
    if not cost.flops:
      return moved / chip.bandwidth / EFFICIENCY
    weights = cost.weights / shape['tensor']
    products = cost.flops + (chip.passes - 1) * cost.exact
    bound = max(products / size / chip.flops,
                (weights + cost.activations / size) / chip.bandwidth)
    gathered = weights * (1 - 1 / shape['fsdp'])
    return (bound + gathered / chip.links) / EFFICIENCY


def _key(x: Any) -> Any:
  """An array by its shape; anything else by itself."""
  return (x.shape, x.dtype) if hasattr(x, 'dtype') else x


def shapes_of(tree: types.PyTree) -> types.PyTree:
  """Shapes of arrays on the host, which are placed as the compiler likes."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)
