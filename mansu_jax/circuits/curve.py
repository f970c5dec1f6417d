"""Faithfulness by circuit size, its two areas, and the smallest circuit.

Sizes and areas are those of the circuit track of the Mechanistic
Interpretability Benchmark (MIB): circuits hold int(share n) of n edges or
nodes, for shares of 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50 and 100 %. Areas are
computed with trapezoids over the share itself, not its logarithm, as by default
in the track's `evaluate_area_under_curve`. The area below the first point does
not count, so faithfulness 1 at every size gives 0.999. Pruning may make a
circuit smaller than its share; the point keeps the share before pruning.

The caller chooses circuits and pairs. The track ranks by the signed score for
CPR and by |score| for CMD, and measures on a validation split; our stages rank
by |score| once and measure on the pairs that gave the scores.

References:
  Mueller et al., MIB: A Mechanistic Interpretability Benchmark, 2025
  (arXiv 2504.13151)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import dataclasses
from typing import Any, Generic, TypeVar

from absl import logging
import numpy as np

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_Circuit = TypeVar('_Circuit')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefixes(Generic[_Circuit]):
  """The circuits of a ranking, by size.

  Attributes:
    unit: kind of candidate: 'nodes' or 'edges'.
    count: number of ranked candidates.
    first: the circuit of the first candidates, from their number (0 included).
    draw: a random circuit of the same size.
    same: whether two circuits are equal.
  """

  unit: str
  count: int
  first: Callable[[int], _Circuit]
  draw: Callable[[int], _Circuit]
  same: Callable[[_Circuit, _Circuit], bool]


def cpr(values: Sequence[float]) -> float:
  """The area under the faithfulness at `SHARES`: high is good."""
  return float(np.trapezoid(values, SHARES))


def cmd(values: Sequence[float]) -> float:
  """The area between the faithfulness at `SHARES` and 1: low is good."""
  return float(np.trapezoid(np.abs(1 - np.asarray(values)), SHARES))


def trace(
    prefixes: Prefixes[_Circuit], faithfulness: Callable[[_Circuit], float],
    randoms: int) -> dict[str, Any]:
  """Measures the curve, and random circuits of the same sizes.

  Args:
    prefixes: the circuits by size.
    faithfulness: faithfulness of a circuit.
    randoms: number of random circuits at each size.

  Returns:
    JSON-able: `curve`, a list of points with `share`, `size`, `faithfulness`
    and `random` (least, mean and largest value, and how many random circuits
    are the `same` as the circuit; None without random circuits); `cpr` and
    `cmd`; and `random_curves`, both areas of each random curve.
  """
  sizes = [int(share * prefixes.count) for share in SHARES]
  logging.info(
      'faithfulness at %d sizes, with %d random circuits at each'
      ' (--circuit_curve_circuits)', len(sizes), randoms)
  values = [faithfulness(prefixes.first(size)) for size in sizes]
  drawn, alike = [], []
  for size in sizes:
    some = [prefixes.draw(size) for _ in range(randoms)]
    drawn.append(list(map(faithfulness, some)))
    alike.append(sum(
        prefixes.same(prefixes.first(size), one) for one in some))
  return {
      'curve': [
          {'share': share, 'size': size, 'faithfulness': value,
           'random': _band(some, equal)}
          for share, size, value, some, equal in zip(
              SHARES, sizes, values, drawn, alike)],
      'cpr': cpr(values), 'cmd': cmd(values),
      'random_curves': {
          name: [area(some) for some in zip(*drawn)]
          for name, area in (('cpr', cpr), ('cmd', cmd))}}


def _band(values: Sequence[float], same: int) -> dict[str, float] | None:
  if not values:
    return None
  return {'min': float(np.min(values)), 'mean': float(np.mean(values)),
          'max': float(np.max(values)), 'same': same}


def smallest(
    value_at: Callable[[int], float], target: float, most: int,
    points: Iterable[dict[str, Any]] | None = None) -> int:
  """The smallest size found that reaches a target; -1: none was found.

  Takes the first point that reaches the target, then bisects between it and
  the point before. Values need not grow with size, so a smaller size may reach
  the target as well.

  Args:
    value_at: value at a size.
    target: value to reach.
    most: the largest size.
    points: measured points with `size` and `faithfulness`, in order of size;
      None: measures sizes 0, 1, 2, 4, ... and `most`, up to the first that
      reaches the target.
  """
  if points is None:
    sizes = [0, *(2**k for k in range(most.bit_length())), most]
    points = ({'size': size, 'faithfulness': value_at(size)} for size in sizes)
  between = bracket(points, target)
  return -1 if between is None else bisect(value_at, target, *between)


def max_evaluations(most: int) -> int:
  """Upper bound on the evaluations of `smallest` without `points`."""
  sizes, steps = most.bit_length() + 2, 0
  low, high = most // 2, most
  while high - low > max(1, high // 50):
    high, steps = (low + high) // 2, steps + 1
  return sizes + steps


def bracket(
    points: Iterable[dict[str, Any]], target: float) -> tuple[int, int] | None:
  """The first size that reaches a target, after the size before it (or 0).

  None where no point reaches the target.
  """
  low = 0
  for point in points:
    if point['faithfulness'] >= target:
      return low, point['size']
    low = point['size']
  return None


def bisect(
    value_at: Callable[[int], float], target: float, low: int, high: int
) -> int:
  """Narrows down, to 2 %, the size at which a target is reached.

  Args:
    value_at: value at a size.
    target: value that `high` reaches.
    low: a size that does not reach it, or 0.
    high: a size that reaches it.
  """
  while high - low > max(1, high // 50):
    middle = (low + high) // 2
    reached = value_at(middle) >= target
    low, high = (low, middle) if reached else (middle, high)
  return high
