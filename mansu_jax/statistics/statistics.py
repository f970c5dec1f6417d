"""Uncertainty of accuracies and of their differences.

Every interval is bootstrapped by fact and has width even if all answers are
equal; see `bootstrap`. Pass the `fact` of each question, and the answers of all
models to the same questions in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np
from scipy import stats

from mansu_jax.statistics import bootstrap

Estimate = bootstrap.Estimate
LEVEL = bootstrap.LEVEL
RESAMPLES = bootstrap.RESAMPLES


def interval(
    values: Sequence[float] | np.ndarray, facts: Sequence[str], *,
    largest: float | None = None, level: float = LEVEL,
    resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
  """Mean of one value per question, bootstrapped by fact.

  Args:
    values: [n] values, such as differences of paired yes/no answers.
    facts: n fact ids.
    largest: largest possible |value|; gives the interval width even if all
      values are equal (see `bootstrap`). None for unbounded values: the
      interval then may have no width.
    level: coverage.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling; equal seeds and facts give equal resamples.

  Raises:
    ValueError: there are no values, lengths differ, or a value is not finite.
  """
  columns, index = bootstrap.columns_by_fact(facts, values=values)
  guard = None
  if largest is not None:
    _check_within(columns[:, 0], largest)
    guard = bootstrap.difference_guard(columns[:, 0], index, largest)
  return bootstrap.estimate(
      columns, index, lambda m: m[..., 0], guard, level, resamples, seed)


def accuracy_with_interval(
    correct: Sequence[bool] | np.ndarray, facts: Sequence[str], *,
    level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
  """Share of right answers; other arguments as for `interval`.

  Args:
    correct: [n] whether each answer is right.
    facts: n fact ids.
    level: coverage.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.

  Two phrasings of each of 20 facts, three facts forgotten:

  Example:
    >>> correct = [0] * 6 + [1] * 34
    >>> facts = [f'fact {i // 2}' for i in range(40)]
    >>> found = accuracy_with_interval(correct, facts)
    >>> found.value, found.facts, found.interval[0] < 0.85 < found.interval[1]
    (0.85, 20, True)
  """
  columns, index = bootstrap.columns_by_fact(facts, correct=correct)
  _check_yes_no(columns, ['correct'])
  guard = bootstrap.share_guard(columns[:, 0], index)
  return bootstrap.estimate(
      columns, index, lambda m: m[..., 0], guard, level, resamples, seed)


def paired_drop(
    before: Sequence[bool] | np.ndarray, after: Sequence[bool] | np.ndarray,
    facts: Sequence[str], *, level: float = LEVEL,
    resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
  """Accuracy before minus accuracy after on the same questions; + is loss.

  Other arguments as for `accuracy_with_interval`.
  """
  columns, _ = bootstrap.columns_by_fact(facts, before=before, after=after)
  _check_yes_no(columns, ['before', 'after'])
  return interval(
      columns[:, 0] - columns[:, 1], facts, largest=1.0, level=level,
      resamples=resamples, seed=seed)


def quantization_gap(
    quantized: Sequence[bool] | np.ndarray, fp: Sequence[bool] | np.ndarray,
    facts: Sequence[str], **options) -> Estimate:
  """Accuracy under quantization minus full precision; + is recovery.

  Options as for `paired_drop`.
  """
  return paired_drop(quantized, fp, facts, **options)


def adjusted_gap(
    quantized: Sequence[bool] | np.ndarray, fp: Sequence[bool] | np.ndarray,
    base_quantized: Sequence[bool] | np.ndarray,
    base_fp: Sequence[bool] | np.ndarray, facts: Sequence[str], *,
    level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
  """The model's quantization gap less the base's, question by question.

  Other arguments as for `accuracy_with_interval`.
  """
  columns, _ = bootstrap.columns_by_fact(
      facts, quantized=quantized, fp=fp, base_quantized=base_quantized,
      base_fp=base_fp)
  _check_yes_no(columns, ['quantized', 'fp', 'base_quantized', 'base_fp'])
  values = columns @ np.array([1.0, -1.0, -1.0, 1.0])
  return interval(
      values, facts, largest=2.0, level=level, resamples=resamples, seed=seed)


def forgetting(
    base: Sequence[bool] | np.ndarray, unlearned: Sequence[bool] | np.ndarray,
    chance: Sequence[float] | np.ndarray, facts: Sequence[str], *,
    level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
  """phi = (acc_0 - acc_u) / (acc_0 - chance): 1 is down to chance.

  Not defined (nan, unbounded interval) if the base is not above chance.
  Resamples in which it is not count as unbounded on both sides.

  Args:
    base: [n] whether the base model is right.
    unlearned: [n] whether the unlearned model is right.
    chance: [n] chance of each question.
    facts: n fact ids.
    level: coverage.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.
  """
  columns, index = bootstrap.columns_by_fact(
      facts, base=base, unlearned=unlearned, chance=chance)
  _check_yes_no(columns[:, :2], ['base', 'unlearned'])
  above = columns[:, 0].mean() - columns[:, 2].mean()

  def phi(means: np.ndarray) -> np.ndarray:
    span = means[..., 0] - means[..., 2]
    safe = np.where(span > 0, span, 1.0)
    return np.where(span > 0, (means[..., 0] - means[..., 1]) / safe, np.nan)

  drop = bootstrap.difference_guard(columns[:, 0] - columns[:, 1], index, 1.0)
  guard = bootstrap.Guard(0.0, lambda tail: (-np.inf, np.inf))
  if above > 0:
    guard = drop._replace(
        bounds=lambda tail: tuple(x / above for x in drop.bounds(tail)))
  return bootstrap.estimate(columns, index, phi, guard, level, resamples, seed)


def mcnemar_exact(
    before: Sequence[bool] | np.ndarray,
    after: Sequence[bool] | np.ndarray) -> float:
  """Exact two-sided p of McNemar's test that two models are equally right.

  The test treats questions as independent. If facts have several phrasings,
  trust the bootstrap by fact instead.

  References:
    McNemar, 1947. Psychometrika 12(2).
  """
  columns, _ = bootstrap.columns_by_fact(
      ['-'] * len(before), before=before, after=after)
  _check_yes_no(columns, ['before', 'after'])
  lost = int(np.sum(columns[:, 0] > columns[:, 1]))
  won = int(np.sum(columns[:, 0] < columns[:, 1]))
  tail = stats.binom.cdf(min(lost, won), lost + won, 0.5)
  return float(min(1.0, 2 * tail))


def smallest_detectable_gap(
    n: float, discordant: float = 0.1, *, level: float = LEVEL,
    power: float = 0.5) -> float:
  """Smallest paired gap that `n` independent items distinguish from zero.

  With a true gap near zero the difference of a pair has variance
  `discordant`, so the gap's one-sided bound is z * sqrt(discordant / n) above
  its estimate.

  Args:
    n: number of independent (or effective, see `effective_items`) items.
    discordant: share of items that the two models answer differently.
    level: one-sided level.
    power: probability of detecting the gap; one half gives the bound itself.

  Example:
    >>> round(smallest_detectable_gap(2706), 4)
    0.01
  """
  _check_shares(n, discordant)
  z = stats.norm.ppf(level) + stats.norm.ppf(power)
  return float(min(1.0, z * math.sqrt(discordant / n)))


def items_to_bound_gap(
    gap: float, discordant: float = 0.1, *, level: float = LEVEL,
    power: float = 0.5) -> int:
  """Number of independent items to collect before a gap can be bounded.

  Args:
    gap: the gap to bound, in (0, 1].
    discordant: share of items that the two models answer differently.
    level: one-sided level.
    power: probability of detecting the gap.

  Raises:
    ValueError: an argument is out of range.

  To show that quantization brings back at most one point of accuracy, if it
  changes 10 % of the answers, or 2 %:

  Example:
    >>> items_to_bound_gap(0.01), items_to_bound_gap(0.01, discordant=0.02)
    (2706, 542)
  """
  _check_shares(1, discordant)
  if not 0 < gap <= 1:
    raise ValueError(
        f'The gap to bound is {gap}; wanted a share in (0, 1]. Correct it.')
  z = stats.norm.ppf(level) + stats.norm.ppf(power)
  return math.ceil(z**2 * discordant / gap**2)


def effective_items(
    events: Sequence[float] | np.ndarray, facts: Sequence[str]) -> float:
  """Number of independent items that n events are worth; see `bootstrap`."""
  columns, index = bootstrap.columns_by_fact(facts, events=events)
  return bootstrap.effective_items(columns[:, 0], index)


def _check_yes_no(columns: np.ndarray, names: list[str]) -> None:
  if not np.isin(columns, (0.0, 1.0)).all():
    raise ValueError(
        f'{", ".join(names)} hold values other than 0 and 1; wanted 1 for'
        ' right and 0 for wrong answers. Use `interval` for other values.')


def _check_within(values: np.ndarray, largest: float) -> None:
  if np.abs(values).max() > largest:
    raise ValueError(
        f'The largest |value| is {np.abs(values).max()}; wanted at most'
        f' largest={largest}. Correct `largest` or leave it out.')


def _check_shares(n: float, discordant: float) -> None:
  if n <= 0 or not 0 <= discordant <= 1:
    raise ValueError(
        f'n={n} and discordant={discordant}; wanted n above 0 and a share'
        ' between 0 and 1. Correct them.')
