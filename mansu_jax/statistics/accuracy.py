"""Accuracies, with their uncertainty.

Every interval is bootstrapped by fact and has width even if all answers are
equal; see `bootstrap`. Pass the `fact` of each question, and the answers of all
models to the same questions in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mansu_jax.statistics import bootstrap


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
