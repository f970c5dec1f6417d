"""Compiles a run's programs without running them, and adds up what they need.

The stages list their programs (`runtime.programs`). Each is compiled for shapes
instead of arrays; its results are shapes with the shardings that the compiler
chose, for the next program to take.
"""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from absl import logging
import jax
from jax.sharding import Mesh

from mansu_jax import types
from mansu_jax.planning import cost as cost_lib
from mansu_jax.planning import topology
from mansu_jax.runtime import memory
from mansu_jax.runtime import programs as programs_lib

# Assumed share of the roofline bound that programs reach.
EFFICIENCY = 0.5
# Compilers' messages; groups 1 and 2 are the total size and its unit.
_OUT_OF_MEMORY = re.compile(
    r'(?:Used |\()([\d.]+)([KMGT])\)? (?:of|exceeds available HBM)'
    r' \(?[\d.]+[KMGT]\)?(?: hbm)?', re.IGNORECASE)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """A compiled program and its cost.

  Attributes:
    name: of the program.
    calls: number of calls in a run.
    bytes: of results, intermediates, code, and arguments that the stage does
      not hold; on each device.
    refused: the compiler's error; empty if it compiled.
    cost: of one call, on all devices.
    seconds: estimate for one call.
  """

  name: str
  calls: int
  bytes: float
  refused: str
  cost: cost_lib.Cost
  seconds: float


@dataclasses.dataclass(kw_only=True)
class Part:
  """The part of a stage during which it holds the same trees.

  Attributes:
    held: bytes on each device, by tree.
    circuit_sized: names of the trees whose size grows with the circuit.
    calls: programs, in order.
  """

  held: dict[str, float]
  circuit_sized: frozenset[str] = frozenset()
  calls: list[Call] = dataclasses.field(default_factory=list)

  @property
  def bytes(self) -> float:
    """Peak bytes on a device."""
    return sum(self.held.values()) + max((c.bytes for c in self.calls),
                                         default=0)


@dataclasses.dataclass(kw_only=True)
class Stage:
  """A stage of the run.

  Attributes:
    name: as in the record's `stages`.
    flags: flags that lower its memory.
    parts: in order.
  """

  name: str
  flags: tuple[str, ...] = ()
  parts: list[Part] = dataclasses.field(default_factory=list)

  @property
  def peak(self) -> Part:
    """The part that needs most memory."""
    return max(self.parts, key=lambda part: part.bytes)

  @property
  def bytes(self) -> float:
    """Peak bytes on a device."""
    return self.peak.bytes

  @property
  def held(self) -> dict[str, float]:
    """Bytes by tree of the part with the peak."""
    return self.peak.held

  @property
  def fixed(self) -> float:
    """Bytes of the trees in that part that do not grow with the circuit."""
    peak = self.peak
    return sum(size for name, size in peak.held.items()
               if name not in peak.circuit_sized)

  @property
  def largest(self) -> Call | None:
    """The program that needs most memory in that part."""
    return max(self.peak.calls, key=lambda c: c.bytes, default=None)

  @property
  def calls(self) -> list[Call]:
    """All programs, in order."""
    return [call for part in self.parts for call in part.calls]

  @property
  def flops(self) -> float:
    """Floating-point operations of all calls, on all devices."""
    return sum(c.calls * c.cost.flops for c in self.calls)

  @property
  def seconds(self) -> float:
    """Estimated seconds of all calls, without compiling."""
    return sum(c.calls * c.seconds for c in self.calls)


class Recorder:
  """Compiles programs for a mesh of devices of one kind.

  Attributes:
    stages: what was recorded.
    compile_seconds: spent compiling here.
  """

  def __init__(self, mesh: Mesh, chip: topology.Chip):
    self._placer, self._mesh, self._chip = programs_lib.Placer(
        mesh), mesh, chip
    self._compiled: dict[Any, tuple[Any, ...]] = {}
    self._held: list[types.PyTree] = []
    self.stages: list[Stage] = []
    self.compile_seconds = 0.0

  def record(self, name: str, programs: programs_lib.Programs) -> Any:
    """Compiles the programs of a stage.

    Args:
      name: of the stage.
      programs: from the `programs` module of the stage.

    Returns:
      The generator's value: shapes for later stages.
    """
    self.stages.append(Stage(name=name))
    out = None
    while True:
      try:
        step = programs.send(out)
      except StopIteration as done:
        logging.info('planned: %s', name)
        return done.value
      out = self._take(step)

  def _take(
      self,
      step: programs_lib.Program | programs_lib.Hold | programs_lib.LoweredBy
  ) -> types.PyTree | None:
    """Takes one step of a stage; returns the shapes of a program's results."""
    if isinstance(step, programs_lib.LoweredBy):
      self.stages[-1].flags = step.flags
      return None
    if isinstance(step, programs_lib.Hold):
      return self._hold(step)
    return self._call(step)

  def _hold(self, step: programs_lib.Hold) -> None:
    self._held = list(step.trees.values())
    self.stages[-1].parts.append(Part(held={
        name: self.size(tree) for name, tree in step.trees.items()
    }, circuit_sized=frozenset(
        name for name, tree in step.trees.items()
        if isinstance(tree, programs_lib.CircuitSized))))

  def size(self, tree: types.PyTree) -> float:
    """Bytes on each device."""
    return float(sum(map(memory.bytes_of, jax.tree.leaves(tree))))

  def _call(self, program: programs_lib.Program) -> types.PyTree:
    """Compiles a program; the shapes of its results, with shardings."""
    fn, args, static = program.fn, program.args, program.static
    key = (id(fn), jax.tree.structure((args, static)), tuple(
        (x.shape, x.dtype, x.sharding) if isinstance(x, jax.ShapeDtypeStruct)
        else _key(x) for x in jax.tree.leaves((args, static))))
    if key not in self._compiled:  # Keeps `fn`, so that its id stays unique.
      self._compiled[key] = (fn, *self._compile(program))
    _, own, refused, cost, out = self._compiled[key]
    known = {id(x) for tree in self._held for x in jax.tree.leaves(tree)}
    given = [x for x in jax.tree.leaves((args, static))
             if isinstance(x, jax.ShapeDtypeStruct)]
    own += self.size([x for x in given if id(x) not in known])
    own -= self.size(out) if program.held else 0
    self.stages[-1].parts[-1].calls.append(Call(
        name=program.name, calls=program.calls, bytes=own, refused=refused,
        cost=cost,
        seconds=self._seconds(cost, self.size((given, out)))))
    return out

  def _compile(self, program: programs_lib.Program) -> tuple[Any, ...]:
    name, fn = program.name, program.fn
    args, static = program.args, program.static
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
      own = max(0.0, own - self.size([  # It counts the arguments too.
          x for x in jax.tree.leaves((args, static))
          if isinstance(x, jax.ShapeDtypeStruct)]))
      refused = found[0] if found else ' '.join(str(error).split())[:200]
      logging.warning('%s does not compile: %s', name, refused)
      out = self._placer.replicate(out)
    else:
      stats = done.memory_analysis()
      own = (stats.temp_size_in_bytes + stats.output_size_in_bytes
             - stats.alias_size_in_bytes + stats.generated_code_size_in_bytes)
      refused = ''
      out = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=sharding), out, done.output_shardings)
    seconds = time.monotonic() - start
    self.compile_seconds += seconds
    logging.info('compiled: %s, %.1f s', name, seconds)
    return float(own), refused, cost_lib.count(traced.jaxpr), out

  def _seconds(self, cost: cost_lib.Cost, moved: float) -> float:
    """Roofline estimate from products, memory and links, at `EFFICIENCY`.

    Rows are split over `data` and `fsdp`, weights over `tensor`; each product
    gathers the weights that `fsdp` splits. A program without products moves
    its arguments and results (`moved` bytes on a device) once.
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
  """An array's shape and dtype; any other value itself."""
  return (x.shape, x.dtype) if hasattr(x, 'dtype') else x
