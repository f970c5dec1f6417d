"""Bootstrap by fact, with exact bounds where resamples hardly differ.

Phrasings of one fact are not independent, so facts are resampled, each with
all its questions. Two weaknesses of the percentile bootstrap are corrected:

* Few facts: quantile levels are expanded to Student's t (Hesterberg 2015).
* Few events: if all answers are right, or two models agree everywhere, all
  resamples are equal and the bootstrap interval has no width. If fewer than ten
  effective items differ from the rest, the interval is therefore widened to an
  exact binomial bound with the number of effective items of Korn and Graubard
  (1998). Without any event the dependence between phrasings is unknown, and a
  fact counts as one item: the one-sided upper 95 % bound is then
  1 - 0.05 ** (1 / facts), about 3 / facts (the rule of three).

References:
  Hesterberg, 2015. What teachers should know about the bootstrap.
  https://arxiv.org/abs/1411.5279
  Korn and Graubard, 1998. Confidence intervals for proportions with small
  expected number of positive counts estimated from survey data. Survey
  Methodology 24(2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from mansu_jax.statistics import intervals
from mansu_jax.statistics import resampling

RESAMPLES = 4000
LEVEL = intervals.LEVEL

# Column means [..., C] -> the statistic [...].
Statistic = Callable[[np.ndarray], np.ndarray]

_FEW = 10.0  # Effective items below which the exact bounds apply.


class Guard(NamedTuple):
  """Exact bounds that apply if events are few."""

  events: float  # Effective items that differ from the most frequent outcome.
  bounds: Callable[[float], tuple[float, float]]  # By tail probability.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """A quantity with its uncertainty.

  Attributes:
    value: point estimate; nan if it is not defined.
    n: number of questions.
    facts: number of resampled facts.
    interval: two-sided interval of the requested level.
    lower: one-sided lower bound of the same level.
    upper: one-sided upper bound of the same level.
  """

  value: float
  n: int
  facts: int
  interval: tuple[float, float]
  lower: float
  upper: float

  def record(self) -> dict[str, Any]:
    """JSON-able form; None replaces values that are not finite."""
    finite = lambda x: x if math.isfinite(x) else None
    return {
        'value': finite(self.value), 'n': self.n, 'facts': self.facts,
        'interval': [finite(x) for x in self.interval],
        'lower': finite(self.lower), 'upper': finite(self.upper)}


def estimate(
    columns: np.ndarray, index: np.ndarray,
    statistic: Statistic, guard: Guard | None,
    level: float, resamples: int, seed: int) -> Estimate:
  """Bootstraps a statistic of column means by fact.

  Args:
    columns: [n, C] values, from `columns_by_fact`.
    index: [n] fact of each row, from `columns_by_fact`.
    statistic: function of column means; nan if it is not defined.
    guard: bounds that widen the interval if events are few, or None.
    level: coverage.
    resamples: number of resamples.
    seed: seed of the resampling.

  Raises:
    ValueError: level or resamples are out of range.
  """
  _check_options(level, resamples)
  count = int(index.max()) + 1
  sums = np.stack([np.bincount(index, c) for c in columns.T], 1)  # [facts, C]
  sizes = np.bincount(index)  # [facts]
  weights = _weights(count, resamples, seed)  # [R, facts]
  draws = statistic(weights @ sums / (weights @ sizes)[:, None])  # [R]
  value = float(statistic(columns.mean(0)))
  few = guard is not None and (guard.events < _FEW or np.ptp(draws) < 1e-9)

  def bounds(tail: float) -> tuple[float, float]:
    low, high = intervals.percentiles(draws, count, tail)
    if few:
      guard_low, guard_high = guard.bounds(tail)
      low, high = min(low, guard_low), max(high, guard_high)
    return float(low), float(high)

  lower, upper = bounds(1 - level)
  return Estimate(
      value=value, n=len(columns), facts=count,
      interval=bounds((1 - level) / 2), lower=lower, upper=upper)


@functools.lru_cache(maxsize=2)
def _weights(count: int, resamples: int, seed: int) -> np.ndarray:
  """Count of each fact in each resample, [resamples, facts] float64."""
  weights = resampling.counts(
      count, resamples, np.random.default_rng(seed)).astype(np.float64)
  weights.flags.writeable = False  # Cached.
  return weights


def effective_items(events: np.ndarray, index: np.ndarray) -> float:
  """Number of independent items with the same variance of the mean.

  Args:
    events: [n] values in [0, 1], mostly 0 and 1.
    index: [n] fact of each value.

  Returns:
    A number between that of facts and n (Korn and Graubard 1998); the number of
    facts if the variance between them is unknown.
  """
  count = int(index.max()) + 1
  p, n = events.mean(), len(events)
  spread = np.bincount(index, events - p)  # [facts]
  if count < 2:
    return 1.0
  variance = count / (count - 1) * np.sum(spread**2) / n**2
  if p <= 0 or p >= 1 or variance < 1e-12:
    return float(count)
  return float(np.clip(p * (1 - p) / variance, count, n))


def event_bound(share: float, items: float, tail: float) -> float:
  """Clopper-Pearson upper bound of the share of events among items."""
  if share >= 1:
    return 1.0
  return float(special.betaincinv(
      items * share + 1, items * (1 - share), 1 - tail))


def share_guard(events: np.ndarray, index: np.ndarray) -> Guard:
  """Guard of the share of events [n], each 0 or 1, with facts [n]."""
  share, items = events.mean(), effective_items(events, index)
  bounds = lambda tail: (
      1 - event_bound(1 - share, items, tail), event_bound(share, items, tail))
  return Guard(float(items * min(share, 1 - share)), bounds)


def difference_guard(
    values: np.ndarray, index: np.ndarray, largest: float) -> Guard:
  """Guard of the mean of values that are gains or losses.

  The upper bound is the exact bound of the gains less the mean loss; the lower
  bound is the mean gain less the exact bound of the losses.

  Args:
    values: [n], between -largest and largest.
    index: [n] fact of each value.
    largest: size of a whole gain or loss.
  """
  values = values / largest
  items = effective_items(np.abs(values), index)
  gain = float(np.maximum(values, 0).mean())
  loss = float(np.maximum(-values, 0).mean())
  bounds = lambda tail: (
      largest * (gain - event_bound(loss, items, tail)),
      largest * (event_bound(gain, items, tail) - loss))
  return Guard(items * (1 - max(gain, loss, 1 - gain - loss)), bounds)


def columns_by_fact(
    facts: Sequence[str], **columns: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Stacks columns of values and numbers the facts.

  Args:
    facts: fact id of each question, n of them.
    **columns: C columns of n values.

  Returns:
    Values [n, C] float64, and the fact index of each row, [n].

  Raises:
    ValueError: there are no values, lengths differ, or a value is not finite.
  """
  arrays = {k: np.asarray(v, np.float64) for k, v in columns.items()}
  for name, array in arrays.items():
    if array.shape != (len(facts),):
      raise ValueError(
          f'{name} has shape {array.shape}, but there are {len(facts)} fact'
          ' ids; wanted one value per fact id. Pass the same questions to'
          ' both.')
    if not np.isfinite(array).all():
      raise ValueError(
          f'{name} holds values that are not finite; wanted finite values.'
          ' Check the model that gave them.')
  if not len(facts):
    raise ValueError(
        f'{", ".join(arrays)}: there are no questions; wanted at least one.'
        ' Leave out the empty split.')
  index = np.unique(np.asarray(facts), return_inverse=True)[1]
  return np.stack(list(arrays.values()), 1), index.reshape(-1)


def check_binary(columns: np.ndarray, names: list[str]) -> None:
  """Raises ValueError unless all values [n, C] are 0 or 1."""
  if not np.isin(columns, (0.0, 1.0)).all():
    raise ValueError(
        f'{", ".join(names)} hold values other than 0 and 1; wanted 1 for'
        ' right and 0 for wrong answers. Use `gaps.mean_difference` for other'
        ' values.')


def _check_options(level: float, resamples: int) -> None:
  if not 0.5 < level < 1 or resamples < 100:
    raise ValueError(
        f'level={level} and resamples={resamples}; wanted a level between 0.5'
        ' and 1 and at least 100 resamples. Correct them.')
