"""Statistics of several training runs that differ only in their seed.

Facts and seeds are crossed: each seed is one training run, asked for the same
facts. Both are a sample, and both are part of the uncertainty. With T_s the
statistic of seed s, of S seeds, the estimate is the mean of T_s. It has the
variance

  V = V_facts + D^2 / S.

V_facts is the bootstrap variance of the mean of T_s by fact, where all seeds
share each resample. D is the standard deviation of T_s between seeds. The luck
of answers differs from seed to seed and is in both terms. So V is too large
rather than too small, as in the bootstrap of Owen (2007).

A bound lies t sqrt(V) from the estimate. V_facts is that of its own side,
(d / t_facts)^2, where d is the distance of the bootstrap bound and t_facts the
quantile of Student's t with facts - 1 degrees of freedom. So a skewed interval
stays skewed, and one seed, or seeds that agree, leave the bounds as they are.
t has the degrees of freedom of Satterthwaite (1946),

  V^2 / (V_facts^2 / (facts - 1) + (D^2 / S)^2 / (S - 1)),

S - 1 if the seeds decide. In simulations with three and five seeds, intervals
hold the truth in 0.94 to 0.99 of trials, and in 0.93 if seeds differ by much
more than facts and luck explain. One seed shows nothing of other trainings: its
interval is over facts alone.

References:
  Owen, 2007. The pigeonhole bootstrap. Annals of Applied Statistics 1(2).
  https://doi.org/10.1214/07-AOAS122
  Satterthwaite, 1946. An approximate distribution of estimates of variance
  components. Biometrics Bulletin 2(6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from mansu_jax.statistics import bootstrap
from mansu_jax.statistics import clipped
from mansu_jax.statistics import gaps


class Sample(NamedTuple):
  """What one seed measured.

  Attributes:
    columns: [n, C] values of its n questions.
    facts: n fact ids.
    statistic: function of the column means, [..., C] -> [...].
  """

  columns: np.ndarray
  facts: Sequence[str]
  statistic: bootstrap.Statistic


class Asked(NamedTuple):
  """Answers of one seed at one precision.

  Attributes:
    right: [n, 2] whether the base and the unlearned model are right.
    ignorance: [n, 2] probability that each is right without knowing the fact.
    facts: n fact ids.
    forms: n names of the groups to clip in; see `forgetting.forms_of`.
  """

  right: np.ndarray
  ignorance: np.ndarray
  facts: Sequence[str]
  forms: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverSeeds(bootstrap.Estimate):
  """The mean over seeds, with an interval over facts and seeds.

  Attributes:
    by_seed: the value of each seed.
    deviation: standard deviation between seeds; nan for one seed, whose
      interval is over facts alone.
  """

  by_seed: tuple[float, ...]
  deviation: float

  def record(self) -> dict[str, Any]:
    """JSON-able form; None replaces values that are not finite."""
    finite = lambda x: float(x) if math.isfinite(x) else None
    return {**super().record(), 'by_seed': [finite(x) for x in self.by_seed],
            'deviation': finite(self.deviation)}


def over_seeds(
    samples: Sequence[Sample], guard: bootstrap.Guard | None = None, *,
    level: float = bootstrap.LEVEL, resamples: int = bootstrap.RESAMPLES,
    seed: int = 0) -> OverSeeds:
  """The mean over seeds of a statistic, with bounds over facts and seeds.

  Args:
    samples: one per seed.
    guard: bounds that widen the bootstrap interval if events are few, or None;
      of the questions of all seeds.
    level: coverage.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.

  Raises:
    ValueError: there is no seed, or one without questions.

  Example:
    >>> mean = lambda m: m[..., 0]
    >>> facts = [f'fact {i}' for i in range(100)]
    >>> of_seed = lambda share: Sample(
    ...     (np.arange(100) < 100 * share)[:, None], facts, mean)
    >>> found = over_seeds([of_seed(0.4), of_seed(0.5), of_seed(0.6)])
    >>> round(found.value, 2), round(found.deviation, 2)
    (0.5, 0.1)
    >>> alone = over_seeds([of_seed(0.5)])
    >>> found.lower < alone.lower and found.upper > alone.upper
    True
  """
  if not samples or not all(len(sample.facts) for sample in samples):
    raise ValueError(
        f'Some of {len(samples)} seeds have no questions; wanted at least one'
        ' seed, each with questions. Leave out the empty ones.')
  table, blocks = _side_by_side(samples)
  index = _index([sample.facts for sample in samples])

  def by_seed(means: np.ndarray) -> np.ndarray:
    """[..., columns] -> [..., S]; nan for a seed without questions."""
    found = []
    for sample, block in zip(samples, blocks):
      size, own = means[..., block][..., :1], means[..., block][..., 1:]
      found.append(sample.statistic(own / np.where(size > 0, size, np.nan)))
    return np.stack(found, -1)

  alone = bootstrap.estimate(
      table, index, lambda means: by_seed(means).mean(-1), guard, level,
      resamples, seed)
  values = by_seed(table.mean(0))  # [S]
  bound = lambda side, found, tail: _widened(
      side, found, alone.value, alone.facts, values, tail)
  tail = (1 - level) / 2
  return OverSeeds(
      value=alone.value, n=alone.n, facts=alone.facts,
      interval=(bound(-1, alone.interval[0], tail),
                bound(1, alone.interval[1], tail)),
      lower=bound(-1, alone.lower, 1 - level),
      upper=bound(1, alone.upper, 1 - level),
      by_seed=tuple(values.tolist()),
      deviation=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan)


def _widened(
    side: int, bound: float, value: float, facts: int, values: np.ndarray,
    tail: float) -> float:
  """A bootstrap bound over facts that also covers the seeds.

  Args:
    side: -1 for a lower bound, 1 for an upper one.
    bound: of the mean over seeds.
    value: the mean.
    facts: number of facts.
    values: [S] of the seeds.
    tail: probability beyond the bound.
  """
  of_seeds = float(np.var(values, ddof=1)) / len(values) if (
      len(values) > 1) else 0.0
  if not of_seeds or not math.isfinite(bound):
    return bound
  freedom = max(facts - 1, 1)
  distance = max(side * (bound - value), 0.0)
  of_facts = (distance / stats.t.ppf(1 - tail, freedom))**2
  total = of_facts + of_seeds
  t = stats.t.ppf(1 - tail, total**2 / (
      of_facts**2 / freedom + of_seeds**2 / (len(values) - 1)))
  return value + side * float(t * math.sqrt(total))


def mean_difference(
    values: Sequence[Sequence[float] | np.ndarray],
    facts: Sequence[Sequence[str]], *, largest: float,
    **options: Any) -> OverSeeds:
  """Mean of one difference per question; see `gaps.mean_difference`.

  Args:
    values: [n] differences of each seed.
    facts: n fact ids of each seed.
    largest: largest possible |value|.
    **options: of `over_seeds`.
  """
  return _mean(values, facts, lambda all_values, index:
               bootstrap.difference_guard(all_values, index, largest), options)


def share(
    right: Sequence[Sequence[bool] | np.ndarray],
    facts: Sequence[Sequence[str]], **options: Any) -> OverSeeds:
  """Share of right answers; see `accuracy.accuracy_with_interval`.

  Args:
    right: [n] whether each answer is right, of each seed.
    facts: n fact ids of each seed.
    **options: of `over_seeds`.
  """
  return _mean(right, facts, bootstrap.share_guard, options)


def _mean(
    values: Sequence[Sequence[float] | np.ndarray],
    facts: Sequence[Sequence[str]],
    guard: Callable[[np.ndarray, np.ndarray], bootstrap.Guard],
    options: dict[str, Any]) -> OverSeeds:
  """The mean of [n] values of each seed; `guard` takes all and their facts."""
  columns = [np.asarray(own, np.float64) for own in values]
  samples = [Sample(own[:, None], ids, lambda means: means[..., 0])
             for own, ids in zip(columns, facts, strict=True)]
  return over_seeds(
      samples, guard(np.concatenate(columns), _index(facts)), **options)


def known_share(asked: Sequence[Asked], **options: Any) -> OverSeeds:
  """Share of the base's knowledge that is left; see `forgetting.known_share`.

  Not defined (nan, unbounded) unless the bases lead ignorance.

  Args:
    asked: answers of each seed.
    **options: of `over_seeds`.
  """
  if not _leads(asked, **options):
    return _undefined(asked)
  shares = [_share(one) for one in asked]
  if not all(math.isfinite(found(found.table.mean(0))) for found in shares):
    return _undefined(asked)
  samples = [Sample(found.table, one.facts, found)
             for found, one in zip(shares, asked)]
  right = np.concatenate([one.right[:, 1] for one in asked]).astype(float)
  guard = bootstrap.share_guard(right, _index([one.facts for one in asked]))
  mean = right.mean()
  lead = max(mean - _mean_ignorance(asked), 0.0)
  of_base = float(np.mean([found.lead for found in shares]))

  def bounds(tail: float) -> tuple[float, float]:
    low, high = guard.bounds(tail)
    return (max(0.0, lead - (mean - low)) / of_base,
            (lead + high - mean) / of_base)

  return over_seeds(samples, guard._replace(bounds=bounds), **options)


def known_gap(
    quantized: Sequence[Asked], fp: Sequence[Asked], **options: Any
) -> OverSeeds:
  """Known share when quantized less in fp; see `forgetting.known_gap`.

  Not defined (nan, unbounded) unless the bases lead ignorance at both.

  Args:
    quantized: answers of each seed under a quantizer.
    fp: answers to the same questions in full precision.
    **options: of `over_seeds`.
  """
  if not (_leads(quantized, **options) and _leads(fp, **options)):
    return _undefined(quantized)
  samples, leads = [], []
  for after, before in zip(quantized, fp, strict=True):
    new, old = _share(after), _share(before)
    table, gap = clipped.difference(new, old)
    samples.append(Sample(table, after.facts, gap))
    leads.append(min(new.lead, old.lead))
  changed = np.concatenate([
      after.right[:, 1] - 1.0 * before.right[:, 1]
      for after, before in zip(quantized, fp)])
  guard = bootstrap.difference_guard(
      changed, _index([one.facts for one in fp]), 1.0)
  value = float(np.mean([
      sample.statistic(sample.columns.mean(0)) for sample in samples]))
  if not math.isfinite(value):
    return _undefined(quantized)
  mean, lead = changed.mean(), float(np.mean(leads))

  def bounds(tail: float) -> tuple[float, float]:
    low, high = guard.bounds(tail)
    return value - (mean - low) / lead, value + (high - mean) / lead

  return over_seeds(samples, guard._replace(bounds=bounds), **options)


def _index(facts: Sequence[Sequence[str]]) -> np.ndarray:
  """Number of each question's fact, one seed after the other, [N]."""
  names = np.concatenate([np.asarray(own) for own in facts])
  return np.unique(names, return_inverse=True)[1].reshape(-1)


def _side_by_side(
    samples: Sequence[Sample]) -> tuple[np.ndarray, list[slice]]:
  """A table with columns of its own for each seed, 0 in the rows of others.

  Returns:
    The table, and the columns of each seed: a mark of its rows, then its own.
  """
  rows = sum(len(sample.facts) for sample in samples)
  width = sum(sample.columns.shape[1] + 1 for sample in samples)
  table, blocks = np.zeros((rows, width)), []
  row = column = 0
  for sample in samples:
    n, own = sample.columns.shape
    block = slice(column, column + own + 1)
    table[row:row + n, column] = 1
    table[row:row + n, column + 1:block.stop] = sample.columns
    blocks.append(block)
    row, column = row + n, block.stop
  return table, blocks


def _share(asked: Asked) -> clipped.Share:
  """The known share in a seed's questions."""
  index, number = (
      np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1)
      for names in (asked.facts, asked.forms))
  columns = np.concatenate([asked.right, asked.ignorance], 1).astype(np.float64)
  return clipped.Share.of(columns, index, number)


def _leads(asked: Sequence[Asked], **options: Any) -> bool:
  """Whether the bases are right more often than by ignorance, all together."""
  leads = np.concatenate([
      one.right[:, 0] - one.ignorance[:, 0] for one in asked])
  facts = [fact for one in asked for fact in one.facts]
  return gaps.mean_difference(leads, facts, largest=1.0, **options).lower > 0


def _mean_ignorance(asked: Sequence[Asked]) -> float:
  return float(np.concatenate([one.ignorance[:, 1] for one in asked]).mean())


def _undefined(asked: Sequence[Asked]) -> OverSeeds:
  facts = [fact for one in asked for fact in one.facts]
  return OverSeeds(
      value=math.nan, n=len(facts), facts=len(set(facts)),
      interval=(-math.inf, math.inf), lower=-math.inf, upper=math.inf,
      by_seed=(math.nan,) * len(asked), deviation=math.nan)
