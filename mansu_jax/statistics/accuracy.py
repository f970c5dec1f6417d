"""Accuracies and forgetting, with their uncertainty.

Every interval is bootstrapped by fact and has width even if all answers are
equal; see `bootstrap`. Pass the `fact` of each question, and the answers of all
models to the same questions in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from mansu_jax.statistics import bootstrap
from mansu_jax.statistics import intervals


def accuracy_with_interval(
    correct: Sequence[bool] | np.ndarray, facts: Sequence[str], *,
    level: float = bootstrap.LEVEL, resamples: int = bootstrap.RESAMPLES,
    seed: int = 0) -> bootstrap.Estimate:
  """Share of right answers, bootstrapped by fact.

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
  bootstrap.check_binary(columns, ['correct'])
  guard = bootstrap.share_guard(columns[:, 0], index)
  return bootstrap.estimate(
      columns, index, lambda m: m[..., 0], guard, level, resamples, seed)


def forgetting(
    base: Sequence[bool] | np.ndarray, unlearned: Sequence[bool] | np.ndarray,
    chance: Sequence[float] | np.ndarray, facts: Sequence[str], *,
    level: float = bootstrap.LEVEL, resamples: int = bootstrap.RESAMPLES,
    seed: int = 0) -> bootstrap.Estimate:
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
  bootstrap.check_binary(columns[:, :2], ['base', 'unlearned'])
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


def worst_forgetting(
    base: Sequence[bool] | np.ndarray, unlearned: Sequence[bool] | np.ndarray,
    chance: Sequence[float] | np.ndarray, facts: Sequence[str],
    groups: Sequence[str], *, least_facts: int,
    resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> tuple[str, bootstrap.Estimate] | None:
  """The group of questions with the lowest upper bound of phi.

  In the pooled phi, accuracy below chance in one group would make up for
  knowledge in another. Intervals are Bonferroni-corrected over the groups.

  Args:
    base: as for `forgetting`.
    unlearned: as for `forgetting`.
    chance: as for `forgetting`.
    facts: n fact ids.
    groups: group of each question, such as its phrasing; n of them.
    least_facts: number of facts that a group needs to be judged. It also needs
      a base above chance.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.

  Returns:
    The group and its phi; None if no group has a bounded phi.
  """
  columns = [np.asarray(column) for column in (base, unlearned, chance)]
  ids, names = np.asarray(facts), np.asarray(groups)
  judged = {}
  for name in dict.fromkeys(names.tolist()):
    rows = names == name
    lead = (columns[0][rows] - columns[2][rows]).mean()
    if np.unique(ids[rows]).size >= least_facts and lead > 0:
      judged[name] = rows
  found = {
      name: forgetting(
          *(column[rows] for column in columns), ids[rows].tolist(),
          level=intervals.bonferroni(len(judged)), resamples=resamples,
          seed=seed)
      for name, rows in judged.items()}
  bounded = {k: v for k, v in found.items() if math.isfinite(v.interval[1])}
  return min(
      bounded.items(), key=lambda item: item[1].interval[1], default=None)
