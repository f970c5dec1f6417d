"""Percentile intervals of bootstrap draws, widened for few facts."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

LEVEL = 0.95  # Coverage of all intervals, and level of all nulls.
CENTRAL = (0.025, 0.975)  # Ends of the central range, as probabilities.


def bonferroni(count: int) -> float:
  """The level of each of `count` intervals that jointly have `LEVEL`."""
  return 1 - (1 - LEVEL) / count


def expanded(tail: float, count: int) -> float:
  """The tail probability at which to read a percentile interval.

  Percentiles of resampled means are too narrow for few facts: by the ratio of
  Student's t to the normal distribution, and of n to n - 1.

  Args:
    tail: nominal tail probability, on one side.
    count: number of resampled facts; one fact leaves the tail unchanged.

  References:
    Hesterberg, 2015. What teachers should know about the bootstrap.
    https://arxiv.org/abs/1411.5279

  Example:
    >>> expanded(0.025, 10) < 0.025, expanded(0.025, 1)
    (True, 0.025)
  """
  if count < 2:
    return tail
  t = stats.t.ppf(tail, count - 1) * math.sqrt(count / (count - 1))
  return float(stats.norm.cdf(t))


def percentiles(
    draws: np.ndarray, count: int, tail: float) -> tuple[float, float]:
  """Lower and upper percentile of bootstrap draws, tails widened.

  Args:
    draws: [draws] values; nan counts as unbounded on both sides.
    count: number of resampled facts.
    tail: nominal tail probability, on one side.
  """
  tail, ends = expanded(tail, count), []
  for probability, worst in ((tail, -np.inf), (1 - tail, np.inf)):
    filled = np.where(np.isnan(draws), worst, draws)
    method = 'linear' if np.isfinite(filled).all() else 'nearest'
    ends.append(float(np.quantile(filled, probability, method=method)))
  return ends[0], ends[1]


def interval(draws: np.ndarray, count: int) -> list[float]:
  """The two-sided interval of `LEVEL`, as in a record.

  Args:
    draws: [draws] values.
    count: number of resampled facts.
  """
  return list(percentiles(draws, count, (1 - LEVEL) / 2))


def central_range(draws: np.ndarray) -> list[float]:
  """The range of the central 95 % of draws, without widened tails.

  It describes how draws vary. As a confidence interval of a mean it would be
  too narrow for few facts; see `interval`.

  Example:
    >>> central_range(np.arange(1001.0))
    [25.0, 975.0]
  """
  return [float(x) for x in np.quantile(draws, CENTRAL)]
