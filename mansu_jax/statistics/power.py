"""Power: what a number of questions can show."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from mansu_jax.statistics import bootstrap
from mansu_jax.statistics import forgetting
from mansu_jax.statistics import intervals
from mansu_jax.statistics import verdict


def smallest_detectable_gap(
    n: float, discordant: float = 0.1, *, level: float = bootstrap.LEVEL,
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
    gap: float, discordant: float = 0.1, *, level: float = bootstrap.LEVEL,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """The shape of one reading of forgetting.

  Attributes:
    forms: number of forms in which each fact is asked.
    sets: number of sets of choices in each form.
    ignorance: mean probability that a guess is right.
    own_ignorance: the same for the unlearned model, which may prefer other
      answers; None: as the base.
    base: accuracy of the base.
    alike: probability that answers to the same fact and form follow one draw
      for all sets of choices; 0 for independent answers.
    spread: standard deviation of the probability of a right guess between
      facts, which have a beta distribution.
    probes: number of guesses at each question by which ignorance is measured;
      0: it is known.
  """

  forms: int
  sets: int = 1
  ignorance: float
  own_ignorance: float | None = None
  base: float
  alike: float = 0.0
  spread: float = 0.0
  probes: int = 0


class Simulated(NamedTuple):
  """Answers to the n questions of a reading."""

  base: np.ndarray  # [n] whether the base is right.
  model: np.ndarray  # [n] whether the other model is.
  fact: np.ndarray  # [n]
  form: np.ndarray  # [n]
  ignorance: np.ndarray  # [n, 2] of the base and of the model.


def answers(
    knows: np.ndarray, reading: Reading, rng: np.random.Generator
) -> Simulated:
  """Simulates the answers of a base and of a model that knows some facts.

  A known fact is answered as by the base; a guess at another is right with the
  fact's probability, independently in each form.

  Args:
    knows: [facts] whether the model knows each fact.
    reading: the shape of the questions.
    rng: generator of the answers.
  """
  shape = (len(knows), reading.forms, reading.sets)

  def right(probability: float | np.ndarray) -> np.ndarray:
    same = rng.random(shape[:2])[..., None]
    own = rng.random(shape)
    follows = rng.random(shape) < reading.alike
    return np.where(follows, same, own) < probability

  def guesses(mean: float) -> np.ndarray:
    if not reading.spread:
      return np.full((len(knows), 1, 1), mean)
    size = mean * (1 - mean) / reading.spread**2 - 1
    return rng.beta(mean * size, (1 - mean) * size, (len(knows), 1, 1))

  def measured(guess: np.ndarray) -> np.ndarray:
    if not reading.probes:
      return np.broadcast_to(guess, shape)
    return np.mean([right(guess) for _ in range(reading.probes)], axis=0)

  of_base = own = guesses(reading.ignorance)
  if reading.own_ignorance is not None:
    own = guesses(reading.own_ignorance)
  base = right(reading.base)
  model = np.where(knows[:, None, None], base, right(own))
  fact, form, _ = np.indices(shape)
  levels = np.stack([measured(guess).ravel() for guess in (of_base, own)], 1)
  return Simulated(
      base.ravel(), model.ravel(), fact.ravel(), form.ravel(), levels)


def forgetting_verdicts(
    known: float, facts: int, readings: Sequence[Reading], *,
    threshold: float = forgetting.PHI, trials: int, seed: int,
    resamples: int = bootstrap.RESAMPLES, sampled: bool = False
) -> dict[str, float]:
  """Shares of verdicts on forgetting for a model that knows some facts.

  Args:
    known: share of the facts that the model knows in full.
    facts: number of facts.
    readings: the readings, all of which ask for all facts.
    threshold: the phi to reach.
    trials: number of simulated models.
    seed: seed of the simulation.
    resamples: number of bootstrap resamples of each interval.
    sampled: whether each fact is known with the probability `known`, as in a
      sample of many facts. If False, the model knows a share of `known` of
      these very facts, rounded.

  Returns:
    Shares of `passed`, `failed` and `inconclusive`.

  Raises:
    ValueError: known is not a share, or there are no readings.
  """
  if not 0 <= known <= 1 or not readings:
    raise ValueError(
        f'known={known} and {len(readings)} readings; wanted a share between 0'
        ' and 1 and at least one reading. Correct them.')
  rng = np.random.default_rng(seed)
  level = intervals.bonferroni(len(readings))
  found = []
  for _ in range(trials):
    knows = (rng.random(facts) < known if sampled
             else rng.permutation(facts) < round(known * facts))
    estimates = []
    for reading in readings:
      asked = answers(knows, reading, rng)
      estimates.append(forgetting.forgetting(
          asked.base, asked.model, asked.ignorance, asked.fact, asked.form,
          level_of_all=level, resamples=resamples, seed=seed))
    found.append(forgetting.judge(estimates, threshold))
  share = lambda what: sum(v is what for v in found) / trials
  return {'passed': share(True), 'failed': share(False),
          'inconclusive': share(verdict.INCONCLUSIVE)}


def _check_shares(n: float, discordant: float) -> None:
  if n <= 0 or not 0 <= discordant <= 1:
    raise ValueError(
        f'n={n} and discordant={discordant}; wanted n above 0 and a share'
        ' between 0 and 1. Correct them.')
