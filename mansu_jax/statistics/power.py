"""Power: the gaps that a number of questions can show."""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np
from scipy import stats

from mansu_jax.statistics import bootstrap


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


def _check_shares(n: float, discordant: float) -> None:
  if n <= 0 or not 0 <= discordant <= 1:
    raise ValueError(
        f'n={n} and discordant={discordant}; wanted n above 0 and a share'
        ' between 0 and 1. Correct them.')
