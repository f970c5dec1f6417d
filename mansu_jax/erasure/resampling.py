"""What measures with nulls have in common: draws of facts, and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mansu_jax.statistics import intervals

LEVEL = 0.95
Verdict = bool | str  # True, False or 'inconclusive'


def weights(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Weights (sum 1) of the members [n] in one bootstrap draw of groups."""
  unique, inverse = np.unique(groups, return_inverse=True)
  counts = np.bincount(
      rng.integers(unique.size, size=unique.size), minlength=unique.size)
  drawn = counts[inverse].astype(np.float64)
  return drawn / drawn.sum()


def halves(
    groups: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Weights (sum 1) of two disjoint halves of the groups, [n] each."""
  unique, inverse = np.unique(groups, return_inverse=True)
  first = rng.permutation(unique.size) < unique.size // 2
  sides = [first[inverse], ~first[inverse]]
  return tuple(side / side.sum() for side in sides)


def interval(values: np.ndarray, groups: int) -> list[float]:
  """The middle 95 % of bootstrap draws, widened for few groups.

  Args:
    values: [draws].
    groups: how many are resampled.
  """
  tail = intervals.expanded((1 - LEVEL) / 2, groups)
  return [float(v) for v in np.quantile(values, [tail, 1 - tail])]


def above(bounds: Iterable[float], level: float = 0.0) -> Verdict:
  """Whether an interval lies above a level; inconclusive where it holds it."""
  low, high = bounds
  if low > level:
    return True
  return False if high < level else 'inconclusive'


def below(bounds: Iterable[float], level: float = 0.0) -> Verdict:
  """Whether an interval lies below a level; inconclusive where it holds it."""
  low, high = bounds
  return above((-high, -low), -level)


def within(found: Mapping[str, Any], level: float) -> Verdict:
  """Whether a value is below a null's level.

  Inconclusive where it is not and its interval is not wholly above.
  """
  if found['value'] < level:
    return True
  return 'inconclusive' if below(
      found['interval'], level) == 'inconclusive' else False


def beyond(found: Mapping[str, Any], level: float) -> Verdict:
  """Whether a value is above a null's level, likewise."""
  low, high = found['interval']
  return within({'value': -found['value'], 'interval': (-high, -low)}, -level)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
  """False where one is, else inconclusive where one is, else True."""
  verdicts = list(verdicts)
  if any(v is False for v in verdicts):
    return False
  return 'inconclusive' if 'inconclusive' in verdicts else True
