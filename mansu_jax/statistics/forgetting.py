"""What is left of the base's knowledge, and the rule that judges it.

A reading asks for the facts in one way, such as a choice among four. A model
that knows a share k of the facts and guesses the others, right with the
probability ign, has the accuracy k + (1 - k) ign. So its lead over ignorance is
divided by 1 - ign: two models may guess in their own ways. Within a reading the
lead is clipped at 0 form by form. A model that avoids the answer in one form
thus cannot make up for knowledge in another.

Intervals are bootstrapped by fact; see `bootstrap`. They speak of facts like
those asked. Resamples of a clipped form lie above the estimate on average, so
the upper bound of the known share is cautious for an ignorant model. It holds
the truth least often, in about 9 trials of 10, if a tenth of 60 facts is known.

A run passes by these bounds. It fails by `upper_of_all`, the lower one of two
bounds: for facts like these, from leads that are not clipped, and for these
very facts, which were to be forgotten. The first is wide where few facts are
known: alone it would need about twice as many facts to fail a model that still
knows a fifth. The second is wide where guesses may agree, as with few facts in
many forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import math
from typing import Any

import numpy as np
from scipy import stats

from mansu_jax.statistics import bootstrap
from mansu_jax.statistics import clipped
from mansu_jax.statistics import gaps
from mansu_jax.statistics import verdict

# Forgetting that a run must reach. With the questions of the power test for 59
# facts, a model that knows nothing passes in 0.87 of trials and one that still
# knows a fifth of the facts fails in all; at 0.85 the first falls to 0.75.
PHI = 0.84


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetting(bootstrap.Estimate):
  """An estimate of phi.

  Attributes:
    upper_of_all: one-sided upper bound at `level_of_all`, the level of each of
      several readings that are judged together: the lower one of a bound for
      facts like these and of one for these very facts, each at half the
      remaining error; see `clipped.error_of_these_facts`.
  """

  upper_of_all: float

  def record(self) -> dict[str, Any]:
    """JSON-able form; None replaces values that are not finite."""
    bound = self.upper_of_all if math.isfinite(self.upper_of_all) else None
    return {**super().record(), 'upper_of_all': bound}


def known_share(
    base: Sequence[bool] | np.ndarray, unlearned: Sequence[bool] | np.ndarray,
    ignorance: Sequence[float] | np.ndarray, facts: Sequence[str],
    forms: Sequence[str], *, level: float = bootstrap.LEVEL,
    resamples: int = bootstrap.RESAMPLES, seed: int = 0) -> bootstrap.Estimate:
  """Share of the base's knowledge that the unlearned model still shows.

  With the mean ignorance ign_f of each model in form f, the ratio of

    sum_f w_f positive_part(acc_u,f - ign_u,f, sigma_f) / (1 - ign_u,f),
    sum_f w_f (acc_0,f - ign_0,f) / (1 - ign_0,f).

  The weight w_f is the number of questions of the form times the lesser
  1 - ign_f of the two models.

  `positive_part` and the standard errors by fact, sigma_f, are those of
  `clipped`. A form in which the base does not lead ignorance adds nothing to
  the base's lead: it has no knowledge to lose. It stays in the numerator, since
  knowledge that shows only after unlearning was there before.

  Not defined (nan, unbounded) unless the lower bound of the base's lead, pooled
  over all forms, is above 0. Resamples without a lead, or in which the
  unlearned model guesses everything right, count as unbounded.

  If few answers are right, or few are wrong, the interval is widened to an
  exact bound of the pooled accuracy; see `bootstrap`. Its margin is added to a
  lead of at least 0, so that a few facts answered wrong do not prove ignorance.

  Args:
    base: [n] whether the base model is right.
    unlearned: [n] whether the unlearned model is right.
    ignorance: probability of a right answer without knowing the fact: [n], or
      [n, 2] with a column for each of the two models, which may guess in their
      own ways.
    facts: n fact ids.
    forms: n names of the groups to clip in; see `forms_of`.
    level: coverage.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.

  Raises:
    ValueError: lengths differ, there are no questions, or a value is invalid.

  Example:
    >>> facts = [f'fact {i}' for i in range(100)]
    >>> known = [i < 40 or i % 4 == 0 for i in range(100)]
    >>> found = known_share(
    ...     [1] * 100, known, [0.25] * 100, facts, ['plain'] * 100)
    >>> round(found.value, 2)
    0.4
  """
  columns, index = _columns(facts, ignorance, base=base, unlearned=unlearned)
  number = _numbered(forms, len(columns))
  options = {'level': level, 'resamples': resamples, 'seed': seed}
  if not _leads(columns[:, 0] - columns[:, 2], index, options):
    return _undefined(columns, index)
  return _estimate_share(columns, index, number, options)


def forgetting(
    base: Sequence[bool] | np.ndarray, unlearned: Sequence[bool] | np.ndarray,
    ignorance: Sequence[float] | np.ndarray, facts: Sequence[str],
    forms: Sequence[str], *, level: float = bootstrap.LEVEL,
    level_of_all: float | None = None, resamples: int = bootstrap.RESAMPLES,
    seed: int = 0) -> Forgetting:
  """phi = 1 - known share: 1 is ignorance, 0 is the base's knowledge.

  Noise of an ignorant model can bring it above 1.

  Args:
    base: as for `known_share`.
    unlearned: as for `known_share`.
    ignorance: as for `known_share`.
    facts: as for `known_share`.
    forms: as for `known_share`.
    level: coverage.
    level_of_all: one-sided level of `upper_of_all`, such as
      `intervals.bonferroni(readings)`; None: `level`.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.
  """
  left = known_share(
      base, unlearned, ignorance, facts, forms, level=level,
      resamples=resamples, seed=seed)
  of_all = math.inf
  if math.isfinite(left.value):
    tail = (1 - (level if level_of_all is None else level_of_all)) / 2
    columns, index = _columns(facts, ignorance, base=base, unlearned=unlearned)
    number = _numbered(forms, len(columns))
    least = max(
        left.value - stats.norm.isf(tail) * clipped.error_of_these_facts(
            columns, index, number),
        _estimate_share(columns, index, number, {
            'level': 1 - tail, 'resamples': resamples, 'seed': seed},
                        clip=False).lower)
    of_all = 1 - least
  return Forgetting(
      value=1 - left.value, n=left.n, facts=left.facts,
      interval=(1 - left.interval[1], 1 - left.interval[0]),
      lower=1 - left.upper, upper=1 - left.lower, upper_of_all=float(of_all))


def known_gap(
    base_q: Sequence[bool] | np.ndarray,
    unlearned_q: Sequence[bool] | np.ndarray,
    base: Sequence[bool] | np.ndarray, unlearned: Sequence[bool] | np.ndarray,
    ignorance: Sequence[float] | np.ndarray, facts: Sequence[str],
    forms: Sequence[str], *, level: float = bootstrap.LEVEL,
    resamples: int = bootstrap.RESAMPLES, seed: int = 0) -> bootstrap.Estimate:
  """Known share when quantized less known share in full precision.

  Each share is relative to the base at the same precision; + means that
  rounding brings knowledge back. Both shares come from the same resamples. Not
  defined unless the base leads ignorance at both precisions.

  If few answers of the unlearned model change, the interval is at least as wide
  as the exact bounds of the changes.

  Args:
    base_q: [n] whether the quantized base is right.
    unlearned_q: [n] whether the quantized unlearned model is right.
    base: as for `known_share`; other arguments too.
    unlearned: as for `known_share`.
    ignorance: as for `known_share`; [n, 4] has a column for each of the four.
    facts: as for `known_share`.
    forms: as for `known_share`.
    level: coverage.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.
  """
  columns, index = _columns(
      facts, ignorance, base_q=base_q, unlearned_q=unlearned_q, base=base,
      unlearned=unlearned)
  number = _numbered(forms, len(columns))
  options = {'level': level, 'resamples': resamples, 'seed': seed}
  for side in (0, 2):
    if not _leads(columns[:, side] - columns[:, side + 4], index, options):
      return _undefined(columns, index)
  after = clipped.Share.of(columns[:, [0, 1, 4, 5]], index, number)
  before = clipped.Share.of(columns[:, [2, 3, 6, 7]], index, number)
  table, gap = clipped.difference(after, before)
  changed = columns[:, 1] - columns[:, 3]
  guard = bootstrap.difference_guard(changed, index, 1.0)
  value = float(gap(table.mean(0)))
  if not math.isfinite(value):
    return _undefined(columns, index)
  lead = min(after.lead, before.lead)

  def bounds(tail: float) -> tuple[float, float]:
    low, high = guard.bounds(tail)
    mean = changed.mean()
    return value - (mean - low) / lead, value + (high - mean) / lead

  return bootstrap.estimate(
      table, index, gap, guard._replace(bounds=bounds), **options)


def avoidance(
    unlearned: Sequence[bool] | np.ndarray,
    ignorance: Sequence[float] | np.ndarray, facts: Sequence[str], *,
    level: float = bootstrap.LEVEL, resamples: int = bootstrap.RESAMPLES,
    seed: int = 0) -> bootstrap.Estimate:
  """Accuracy less ignorance; an upper bound below 0 shows avoidance.

  A model that avoids the answer still tells it to whoever looks.

  Args:
    unlearned: as for `known_share`.
    ignorance: [n], of the unlearned model.
    facts: as for `known_share`.
    level: coverage.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.
  """
  columns, index = _columns(facts, ignorance, unlearned=unlearned)
  guard = bootstrap.share_guard(columns[:, 0], index)
  level_of_ignorance = columns[:, 1].mean()
  shifted = lambda tail: tuple(
      bound - level_of_ignorance for bound in guard.bounds(tail))
  return bootstrap.estimate(
      columns, index, lambda m: m[..., 0] - m[..., 1],
      guard._replace(bounds=shifted), level, resamples, seed)


def forms_of(
    forms: Sequence[str], relations: Sequence[str], facts: Sequence[str],
    least_facts: int = 10) -> list[str]:
  """Names of the groups of questions in which accuracy is clipped.

  Questions of one form and one relation are a group. Relations with few facts
  share a group a form: an entity has one fact a relation, and a group of one
  fact has no standard error.

  Args:
    forms: name of the form of each question, n of them.
    relations: n relations.
    facts: n fact ids.
    least_facts: number of facts from which a relation has groups of its own.

  Returns:
    n names.

  Raises:
    ValueError: lengths differ.

  Example:
    >>> forms_of(['plain', 'chat'], ['capital', 'capital'], ['a', 'b'], 2)
    ['capital: plain', 'capital: chat']
    >>> forms_of(['plain', 'chat'], ['capital', 'author'], ['a', 'b'], 2)
    ['other relations: plain', 'other relations: chat']
  """
  if not len(forms) == len(relations) == len(facts):
    raise ValueError(
        f'There are {len(forms)} forms, {len(relations)} relations and'
        f' {len(facts)} facts; wanted one of each a question. Pass the columns'
        ' of the same questions.')
  asked: dict[str, set[str]] = {}
  for relation, fact in zip(relations, facts):
    asked.setdefault(relation, set()).add(fact)
  return [
      f'{r if len(asked[r]) >= least_facts else "other relations"}: {form}'
      for form, r in zip(forms, relations)]


def judge(
    estimates: Iterable[Forgetting], threshold: float = PHI
) -> verdict.Verdict:
  """Whether facts are forgotten in every reading.

  Passed if each lower bound is at least the threshold; as all must be, the
  bounds need no correction. Failed if some `upper_of_all` is below it: one of
  several suffices, so that bound is corrected. Inconclusive otherwise, and
  without any reading.

  Args:
    estimates: phi of each reading; `level_of_all` should be
      `intervals.bonferroni(readings)`.
    threshold: the phi to reach.
  """
  found = list(estimates)
  if not found:
    return verdict.INCONCLUSIVE
  return verdict.all_of(
      verdict.at_least((phi.lower, phi.upper_of_all), threshold)
      for phi in found)


def _estimate_share(
    columns: np.ndarray, index: np.ndarray, number: np.ndarray,
    options: dict[str, Any], clip: bool = True) -> bootstrap.Estimate:
  """The known share; arguments as for `clipped.Share.of`.

  Args:
    columns: as for `clipped.Share.of`; other arguments too.
    index: likewise.
    number: likewise.
    options: of the bootstrap.
    clip: whether leads are clipped.
  """
  share = clipped.Share.of(columns, index, number)
  statistic = functools.partial(share, clip=clip)
  if not math.isfinite(statistic(share.table.mean(0))):
    return _undefined(columns, index)
  right, ignorance = columns[:, 1].mean(), columns[:, 3].mean()
  guard = bootstrap.share_guard(columns[:, 1], index)
  lead = max(right - ignorance, 0.0)

  def bounds(tail: float) -> tuple[float, float]:
    low, high = guard.bounds(tail)
    return (max(0.0, lead - (right - low)) / share.lead,
            (lead + high - right) / share.lead)

  return bootstrap.estimate(
      share.table, index, statistic, guard._replace(bounds=bounds), **options)


def _leads(
    leads: np.ndarray, index: np.ndarray, options: dict[str, Any]) -> bool:
  """Whether the lower bound of the mean lead [n] is above 0."""
  return gaps.mean_difference(leads, index, largest=1.0, **options).lower > 0


def _undefined(columns: np.ndarray, index: np.ndarray) -> bootstrap.Estimate:
  return bootstrap.Estimate(
      value=math.nan, n=len(columns), facts=int(index.max()) + 1,
      interval=(-math.inf, math.inf), lower=-math.inf, upper=math.inf)


def _numbered(forms: Sequence[str], size: int) -> np.ndarray:
  """Number of the form of each question, [n]; ValueError if n differs."""
  if len(forms) != size:
    raise ValueError(
        f'There are {len(forms)} forms and {size} answers; wanted one form a'
        ' question. Pass the same questions to both.')
  return np.unique(np.asarray(forms), return_inverse=True)[1].reshape(-1)


def _columns(
    facts: Sequence[str], ignorance: Sequence[float] | np.ndarray,
    **right: Sequence[bool] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Answers of k models, then the ignorance of each.

  Args:
    facts: n fact ids.
    ignorance: [n], of all models, or [n, k].
    **right: k columns of n answers.

  Returns:
    Values [n, 2k], and the fact of each row, [n].

  Raises:
    ValueError: answers are not 0 or 1, ignorance is not a share, or shapes
      differ.
  """
  levels = np.asarray(ignorance, np.float64)
  if levels.ndim == 1:
    levels = np.stack([levels] * len(right), 1)
  if levels.ndim != 2 or levels.shape[1] != len(right):
    raise ValueError(
        f'ignorance has shape {levels.shape}; wanted [n] or'
        f' [n, {len(right)}], one column for each of'
        f' {", ".join(right)}. Correct it.')
  columns, index = bootstrap.columns_by_fact(
      facts, **right, **{
          f'ignorance of {name}': level
          for name, level in zip(right, levels.T)})
  bootstrap.check_binary(columns[:, :len(right)], list(right))
  if levels.size and not 0 <= levels.min() <= levels.max() <= 1:
    raise ValueError(
        f'ignorance lies between {levels.min()} and {levels.max()}; wanted'
        ' probabilities between 0 and 1. Pass the chance of a right guess.')
  return columns, index
