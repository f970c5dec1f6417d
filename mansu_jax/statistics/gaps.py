"""Differences between models on the same questions, with their uncertainty.

Every interval is bootstrapped by fact; see `bootstrap`. Pass the `fact` of each
question, and the answers of all models in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from mansu_jax.statistics import bootstrap


def mean_difference(
    values: Sequence[float] | np.ndarray, facts: Sequence[str], *,
    largest: float | None = None, level: float = bootstrap.LEVEL,
    resamples: int = bootstrap.RESAMPLES, seed: int = 0) -> bootstrap.Estimate:
  """Mean of one difference per question, bootstrapped by fact.

  Args:
    values: [n] differences, such as of paired yes/no answers.
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


def paired_drop(
    before: Sequence[bool] | np.ndarray, after: Sequence[bool] | np.ndarray,
    facts: Sequence[str], *, level: float = bootstrap.LEVEL,
    resamples: int = bootstrap.RESAMPLES, seed: int = 0) -> bootstrap.Estimate:
  """Accuracy before minus accuracy after on the same questions; + is loss.

  Other arguments as for `mean_difference`.
  """
  columns, _ = bootstrap.columns_by_fact(facts, before=before, after=after)
  bootstrap.check_binary(columns, ['before', 'after'])
  return mean_difference(
      columns[:, 0] - columns[:, 1], facts, largest=1.0, level=level,
      resamples=resamples, seed=seed)


def quantization_gap(
    quantized: Sequence[bool] | np.ndarray, fp: Sequence[bool] | np.ndarray,
    facts: Sequence[str], **options) -> bootstrap.Estimate:
  """Accuracy under quantization minus full precision; + is recovery.

  Options as for `paired_drop`.
  """
  return paired_drop(quantized, fp, facts, **options)


def adjusted_gap(
    quantized: Sequence[bool] | np.ndarray, fp: Sequence[bool] | np.ndarray,
    base_quantized: Sequence[bool] | np.ndarray,
    base_fp: Sequence[bool] | np.ndarray, facts: Sequence[str], *,
    level: float = bootstrap.LEVEL, resamples: int = bootstrap.RESAMPLES,
    seed: int = 0) -> bootstrap.Estimate:
  """The model's quantization gap less the base's, question by question.

  Other arguments as for `mean_difference`.
  """
  columns, _ = bootstrap.columns_by_fact(
      facts, quantized=quantized, fp=fp, base_quantized=base_quantized,
      base_fp=base_fp)
  bootstrap.check_binary(
      columns, ['quantized', 'fp', 'base_quantized', 'base_fp'])
  values = columns @ np.array([1.0, -1.0, -1.0, 1.0])
  return mean_difference(
      values, facts, largest=2.0, level=level, resamples=resamples, seed=seed)


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
  bootstrap.check_binary(columns, ['before', 'after'])
  lost = int(np.sum(columns[:, 0] > columns[:, 1]))
  won = int(np.sum(columns[:, 0] < columns[:, 1]))
  tail = stats.binom.cdf(min(lost, won), lost + won, 0.5)
  return float(min(1.0, 2 * tail))


def _check_within(values: np.ndarray, largest: float) -> None:
  if np.abs(values).max() > largest:
    raise ValueError(
        f'The largest |value| is {np.abs(values).max()}; wanted at most'
        f' largest={largest}. Correct `largest` or leave it out.')
