"""Stability: does a circuit depend on the pairs that it was attributed on?

Scores are means over pairs, so other pairs or other weights of the same pairs
give another selection. Facts are resampled and halved, not pairs, because
phrasings of one fact are not independent. Scores are kept as sums over groups
of facts: one fact a group for nodes; a few groups of facts for edges, where one
sum per fact would take too much memory.

Four questions, the easiest first:

* `resampled`: does a bootstrap sample of the groups select the circuit again?
  Such a sample shares most facts with the reference, so this measures the noise
  of selection alone.
* `halves`: do two disjoint halves of the facts select the same circuit? Each
  half has half the data, so this is a lower bound for two full sets of facts.
* `compare_phrasings`: do the same facts in other phrasings select it?
* `random_overlap`: how much do random circuits overlap with it? They have as
  many nodes in each layer, or edges selected by permuted scores. No overlap
  means anything without this one.

Candidates (nodes or edges) are numbered 0 to n - 1; a circuit is bool [n].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from mansu_jax.statistics import intervals
from mansu_jax.statistics import resampling

Select = Callable[[np.ndarray], np.ndarray]  # Mean scores [n] -> bool [n].

GROUPS = 16  # Groups of facts where sums per fact would take too much memory.
_FIRM = 0.95  # Share of the resamples that select a firm candidate.
_SUBSETS = 64  # Most subsets of the jackknife.


class Sums(NamedTuple):
  """Scores summed over the pairs of each of K groups of facts."""

  totals: np.ndarray  # [K, n] float32
  counts: np.ndarray  # [K], number of pairs

  def mean(self, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean scores [n] float64, with each group counted `weights` [K] times."""
    weights = np.ones(len(self.counts)) if weights is None else weights
    total = weights.astype(np.float32) @ self.totals
    return total.astype(np.float64) / max(weights @ self.counts, 1)


class Phrasings(NamedTuple):
  """Scores of the same groups of facts in two sets of phrasings."""

  own: Sums  # The phrasings that gave the circuit.
  other: Sums


def group_facts(
    facts: Sequence[str], most: int | None = None, seed: int = 0
) -> dict[str, int]:
  """`{fact: group}`: groups of equally many facts, drawn at random.

  Args:
    facts: facts of the pairs, in any order; they may repeat.
    most: largest number of groups; None: each fact is one group.
    seed: seed of the draw.
  """
  names = sorted(set(facts))
  size = min(most or len(names), len(names))
  order = np.random.default_rng(seed).permutation(len(names))
  return {name: int(i % size) for name, i in zip(names, order)}


def sum_by_group(
    scores: np.ndarray, groups: np.ndarray, count: int) -> Sums:
  """Sums the scores [P, n] of pairs whose groups [P] are below `count`."""
  totals = np.zeros((count, scores.shape[1]), np.float32)
  np.add.at(totals, groups, scores)
  return Sums(totals, np.bincount(groups, minlength=count))


def overlap(circuit: np.ndarray, other: np.ndarray) -> tuple[float, float]:
  """Jaccard overlap, and the share of `circuit` that is in `other`."""
  both = np.count_nonzero(circuit & other)
  either = np.count_nonzero(circuit | other)
  return both / max(either, 1), both / max(np.count_nonzero(circuit), 1)


def correlations(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
  """Spearman correlations of scores [n] and of |scores|; 0 for constants."""
  return _spearman(one, other), _spearman(np.abs(one), np.abs(other))


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
  ranks = [stats.rankdata(x) for x in (one, other)]
  if min(map(np.ptp, ranks)) == 0:
    return 0.0
  return float(np.corrcoef(*ranks)[0, 1])


def resampled(
    sums: Sums, select: Select, reference: np.ndarray, draws: int, seed: int
) -> tuple[dict[str, Any], np.ndarray]:
  """Selects circuits from bootstrap samples of the groups.

  Args:
    sums: scores of the pairs that gave the reference.
    select: selects a circuit by mean scores.
    reference: the circuit, bool [n].
    draws: number of bootstrap samples.
    seed: seed of the draws.

  Returns:
    `jaccard` and `kept` (mean and 95 % range over the draws) and `firm`, the
    share of the reference that at least 95 % of the draws select; and the share
    of draws that select each candidate, [n].
  """
  rng = np.random.default_rng(seed)
  times, overlaps = np.zeros(reference.size), []
  for weights in resampling.counts(len(sums.counts), draws, rng):
    got = select(sums.mean(weights))
    times += got
    overlaps.append(overlap(reference, got))
  firm = float((times[reference] >= _FIRM * draws).mean())
  return _named(('jaccard', 'kept'), overlaps) | {'firm': firm}, times / draws


def halvings(size: int, draws: int, seed: int) -> np.ndarray:
  """The groups in the first half of each random halving, bool [draws, K]."""
  rng = np.random.default_rng(seed)
  return np.stack([resampling.first_half(size, rng) for _ in range(draws)])


def halves(sums: Sums, select: Select, firsts: np.ndarray) -> dict[str, Any]:
  """Compares the circuits of disjoint halves of the groups.

  Args:
    sums: scores of the pairs.
    select: selects a circuit by mean scores.
    firsts: first halves, from `halvings`.

  Returns:
    `jaccard`, `kept`, `spearman` and `spearman_absolute`: mean and 95 % range
    over the halvings.
  """
  rows = []
  for first in firsts:
    one, other = sums.mean(first), sums.mean(~first)
    rows.append((*overlap(select(one), select(other)),
                 *correlations(one, other)))
  return _named(_COMPARED, rows)


_COMPARED = ('jaccard', 'kept', 'spearman', 'spearman_absolute')


def compare_phrasings(
    phrasings: Phrasings, select: Select) -> dict[str, Any]:
  """Compares the circuits of two sets of phrasings of the same facts.

  Intervals come from the jackknife that leaves out a quarter of the groups at a
  time, the same ones on both sides. A bootstrap sample holds fewer different
  facts than the data and selects less reliably, so its interval would lie below
  the value. Leaving out one group at a time does not estimate the error of
  statistics that are not smooth, such as overlaps.

  References:
    Shao and Wu, 1989. A general theory for jackknife variance estimation.

  Returns:
    `jaccard`, `kept`, `spearman` and `spearman_absolute`, each with `value`
    and `interval` (95 %).
  """
  def compare(weights: np.ndarray) -> tuple[float, ...]:
    one, other = (side.mean(weights) for side in phrasings)
    return (*overlap(select(one), select(other)), *correlations(one, other))

  size = len(phrasings.own.counts)
  values = np.array(compare(np.ones(size)))
  fewer = max(1, size // 4)
  left_out = np.array([compare(row) for row in _without(size, fewer)])
  error = np.sqrt((size - fewer) / fewer * left_out.var(0))
  half = stats.t.ppf(intervals.CENTRAL[1], size - 1) * error
  low, high = (np.clip(end, (0, 0, -1, -1), 1)
               for end in (values - half, values + half))
  return {name: {'value': float(v), 'interval': [float(a), float(b)]}
          for name, v, a, b in zip(_COMPARED, values, low, high)}


def _without(size: int, fewer: int) -> np.ndarray:
  """Weights [draws, size] of the remaining groups, for all or 64 subsets."""
  if math.comb(size, fewer) <= _SUBSETS:
    rows = list(itertools.combinations(range(size), fewer))
  else:
    rng = np.random.default_rng(0)
    rows = [rng.choice(size, fewer, replace=False) for _ in range(_SUBSETS)]
  weights = np.ones((len(rows), size))
  np.put_along_axis(weights, np.array(rows), 0, 1)
  return weights


def random_overlap(
    reference: np.ndarray, draw: Callable[[np.random.Generator], np.ndarray],
    draws: int, seed: int) -> dict[str, Any]:
  """The overlap of random circuits with the reference.

  Args:
    reference: the circuit, bool [n].
    draw: draws a random circuit, bool [n].
    draws: number of random circuits.
    seed: seed of the draws.

  Returns:
    `jaccard` and `kept` (mean and 95 % range over the draws) and `same`, the
    number of random circuits that equal the reference.
  """
  rng = np.random.default_rng(seed)
  rows = [overlap(reference, draw(rng)) for _ in range(draws)]
  return _named(('jaccard', 'kept'), rows) | {
      'same': sum(jaccard == 1 for jaccard, _ in rows)}


def _named(
    names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
  """Mean and 95 % range of each column."""
  columns = np.array(rows).T
  return {name: {'mean': float(column.mean()),
                 'interval': intervals.central_range(column)}
          for name, column in zip(names, columns)} | {'draws': len(rows)}
