"""Faithfulness over the size of circuits, and its two areas.

Sizes and areas are those of the circuit track of the Mechanistic
Interpretability Benchmark (MIB). Circuits hold int(share n) of n edges, or
nodes, for these shares: 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50 and 100 %. Areas are
by trapezoids between these points over the share itself, not its logarithm
(the default of the track's `evaluate_area_under_curve`, which can do both).
What lies below the first point does not count, so the most that faithfulness 1
gives is 0.999. Points are circuits as they are evaluated, which may be pruned;
their shares are those asked for.

Which circuits and pairs is the caller's: the track ranks by the signed score
for CPR and by |score| for CMD, and measures on a validation split, where our
stages have one ranking by |score| and the pairs that gave it.

References:
  Mueller et al., MIB: A Mechanistic Interpretability Benchmark, 2025
  (arXiv 2504.13151)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from absl import logging
import numpy as np

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_Circuit = TypeVar('_Circuit')


def cpr(values: Sequence[float]) -> float:
  """The area under the faithfulness at `SHARES`: high is good."""
  return float(np.trapezoid(values, SHARES))


def cmd(values: Sequence[float]) -> float:
  """The area between the faithfulness at `SHARES` and 1: low is good."""
  return float(np.trapezoid(np.abs(1 - np.asarray(values)), SHARES))


def trace(
    count: int, first: Callable[[int], _Circuit],
    draw: Callable[[int], _Circuit],
    faithfulness: Callable[[_Circuit], float], randoms: int,
    same: Callable[[_Circuit, _Circuit], bool]) -> dict[str, Any]:
  """Measures the curve, beside random circuits of the same sizes.

  Args:
    count: how many edges or nodes a circuit may hold.
    first: from a size, 0 included, to the circuit of the best ones.
    draw: from such a size to a random circuit.
    faithfulness: of a circuit.
    randoms: random circuits at each size.
    same: whether two circuits are one.

  Returns:
    JSON-able: `curve`, a list of points with `share`, `size`, `faithfulness`
    and `random` (its least, mean and most, None without any, and how many are
    the `same` as the circuit); `cpr` and `cmd`; and these areas of each random
    curve, in `random_curves`.
  """
  sizes = [int(share * count) for share in SHARES]
  logging.info(
      'faithfulness at %d sizes, each beside %d random circuits'
      ' (--circuit_curve_circuits)', len(sizes), randoms)
  values = [faithfulness(first(size)) for size in sizes]
  drawn, alike = [], []
  for size in sizes:
    some = [draw(size) for _ in range(randoms)]
    drawn.append(list(map(faithfulness, some)))
    alike.append(sum(same(first(size), one) for one in some))
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


def bisect(
    value_at: Callable[[int], float], target: float, low: int, high: int
) -> int:
  """The smallest size found, above `low`, that reaches a target.

  By bisection, to 2 %: values need not grow with size, so a smaller one that
  happens to reach the target may exist.

  Args:
    value_at: of a size.
    target: what `high` reaches.
    low: a size that does not reach it, or 0.
    high: a size that does.
  """
  while high - low > max(1, high // 50):
    middle = (low + high) // 2
    reached = value_at(middle) >= target
    low, high = (low, middle) if reached else (middle, high)
  return high


def bracket(
    points: Iterable[dict[str, Any]], target: float) -> tuple[int, int] | None:
  """Where a curve first reaches a target: the size before it, and its own.

  None where it never does.
  """
  low = 0
  for point in points:
    if point['faithfulness'] >= target:
      return low, point['size']
    low = point['size']
  return None


def smallest(value_at: Callable[[int], float], target: float, most: int) -> int:
  """The smallest size found that reaches a target; -1 where none is found.

  Sizes 0, 1, 2, 4, ... and the most are tried up to the first that reaches it;
  then by `bisect` between that and the one before it.

  Args:
    value_at: of a size.
    target: to reach.
    most: the largest size.
  """
  sizes = [0, *(2**k for k in range(most.bit_length())), most]
  between = bracket(({'size': size, 'faithfulness': value_at(size)}
                     for size in sizes), target)
  return -1 if between is None else bisect(value_at, target, *between)


def max_evaluations(most: int) -> int:
  """Most evaluations that `smallest` makes for sizes up to `most`."""
  sizes, steps = most.bit_length() + 2, 0
  low, high = most // 2, most
  while high - low > max(1, high // 50):
    high, steps = (low + high) // 2, steps + 1
  return sizes + steps
