"""How firmly a circuit rests on the pairs that it was attributed on.

Scores are means over pairs, so that a circuit of other pairs is the same
selection from other weights of them. Facts are resampled and halved, not
pairs: phrasings of one fact are not independent. What is kept is the scores'
sums over groups of facts: each fact a group where nodes are scored, a few
groups of facts where the scores of every edge would not fit.

Four questions, from the easiest on:

* `resampled`: is the circuit selected again from a bootstrap sample of the
  groups? Such a sample shares most facts with the reference, so this is the
  noise of selection alone.
* `halves`: do two disjoint halves of the facts select the same? Each has half
  the data, so this is a lower bound of what as many other facts would give.
* `other_words`: do the same facts in other phrasings?
* `chance`: what random circuits give, of nodes as many in each layer, of edges
  selected by permuted scores; an overlap means nothing without it.

A candidate (node or edge) has one place in a row of n; a circuit is bool [n].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Select = Callable[[np.ndarray], np.ndarray]  # Mean scores [n] -> bool [n].

GROUPS = 16  # Of facts, where each fact's own sums would be too many.
_FIRM = 0.95  # Of the resamples.
_TAILS = (0.025, 0.975)
_SUBSETS = 64  # Of the jackknife.


class Sums(NamedTuple):
  """Scores summed over the pairs of each of K groups of facts."""

  totals: np.ndarray  # [K, n] float32
  counts: np.ndarray  # [K], pairs

  def mean(self, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean scores [n] float64, each group as often as `weights` [K] says."""
    weights = np.ones(len(self.counts)) if weights is None else weights
    total = weights.astype(np.float32) @ self.totals
    return total.astype(np.float64) / max(weights @ self.counts, 1)


class Words(NamedTuple):
  """The same groups of facts in the circuit's phrasings and in others."""

  own: Sums
  other: Sums


def group_facts(
    facts: Sequence[str], most: int | None = None, seed: int = 0
) -> dict[str, int]:
  """`{fact: group}`: groups of as many facts, drawn at random.

  Args:
    facts: of the pairs, in any order and number.
    most: groups; None: each fact is one.
    seed: of the draw.
  """
  names = sorted(set(facts))
  size = min(most or len(names), len(names))
  order = np.random.default_rng(seed).permutation(len(names))
  return {name: int(place % size) for name, place in zip(names, order)}


def add_up(scores: np.ndarray, groups: np.ndarray, count: int) -> Sums:
  """Sums scores [P, n] of pairs in groups [P] of `count`."""
  totals = np.zeros((count, scores.shape[1]), np.float32)
  np.add.at(totals, groups, scores)
  return Sums(totals, np.bincount(groups, minlength=count))


def overlap(circuit: np.ndarray, other: np.ndarray) -> tuple[float, float]:
  """Jaccard overlap, and the share of `circuit` that `other` holds."""
  both = np.count_nonzero(circuit & other)
  either = np.count_nonzero(circuit | other)
  return both / max(either, 1), both / max(np.count_nonzero(circuit), 1)


def correlations(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
  """Spearman's of scores [n], and of their sizes; 0 where one is constant."""
  return _spearman(one, other), _spearman(np.abs(one), np.abs(other))


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
  ranks = [stats.rankdata(x) for x in (one, other)]
  if min(map(np.ptp, ranks)) == 0:
    return 0.0
  return float(np.corrcoef(*ranks)[0, 1])


def resampled(
    sums: Sums, select: Select, reference: np.ndarray, draws: int, seed: int
) -> tuple[dict[str, Any], np.ndarray]:
  """Selects again from bootstrap samples of the groups.

  Args:
    sums: of the pairs that gave the reference.
    select: from mean scores to a circuit.
    reference: the circuit, bool [n].
    draws: bootstrap samples.
    seed: of the draws.

  Returns:
    `jaccard` and `kept` (means and the ranges of 95 % of the draws) and
    `firm`, the share of the reference that at least 95 % of them select; and
    in how many of the draws each candidate is, a share, [n].
  """
  rng = np.random.default_rng(seed)
  size = len(sums.counts)
  times, overlaps = np.zeros(reference.size), []
  for _ in range(draws):
    weights = np.bincount(rng.integers(size, size=size), minlength=size)
    got = select(sums.mean(weights))
    times += got
    overlaps.append(overlap(reference, got))
  account = _named(('jaccard', 'kept'), overlaps)
  account['firm'] = float((times[reference] >= _FIRM * draws).mean())
  return account, times / draws


def halvings(size: int, draws: int, seed: int) -> np.ndarray:
  """Which groups are in the first half of each halving, bool [draws, K]."""
  rng = np.random.default_rng(seed)
  return np.stack([rng.permutation(size) < size // 2 for _ in range(draws)])


def halves(sums: Sums, select: Select, firsts: np.ndarray) -> dict[str, Any]:
  """Compares what disjoint halves of the groups select.

  Args:
    sums: of the pairs.
    select: from mean scores to a circuit.
    firsts: from `halvings`.

  Returns:
    `jaccard`, `kept`, `spearman` and `spearman_absolute`: means over halvings
    and the ranges of 95 % of them.
  """
  rows = []
  for first in firsts:
    one, other = sums.mean(first), sums.mean(~first)
    rows.append((*overlap(select(one), select(other)),
                 *correlations(one, other)))
  return _named(_COMPARED, rows)


_COMPARED = ('jaccard', 'kept', 'spearman', 'spearman_absolute')


def other_words(words: Words, select: Select) -> dict[str, Any]:
  """Compares what two phrasings of the same facts select.

  Intervals are of the jackknife that leaves out a quarter of the groups at a
  time, both sides losing the same facts. A bootstrap sample has fewer different
  facts than the data, selects less reliably, and its interval would lie below
  the value. Leaving out one group does not estimate the error of what is not
  smooth, as overlaps are not.

  References:
    Shao and Wu, 1989. A general theory for jackknife variance estimation.

  Returns:
    `jaccard`, `kept`, `spearman` and `spearman_absolute`, each with `value`
    and `interval` (95 %).
  """
  def compare(weights: np.ndarray) -> tuple[float, ...]:
    one, other = (side.mean(weights) for side in words)
    return (*overlap(select(one), select(other)), *correlations(one, other))

  size = len(words.own.counts)
  values = np.array(compare(np.ones(size)))
  fewer = max(1, size // 4)
  left_out = np.array([compare(row) for row in _without(size, fewer)])
  error = np.sqrt((size - fewer) / fewer * left_out.var(0))
  half = stats.t.ppf(_TAILS[1], size - 1) * error
  low, high = (np.clip(end, (0, 0, -1, -1), 1)
               for end in (values - half, values + half))
  return {name: {'value': float(v), 'interval': [float(a), float(b)]}
          for name, v, a, b in zip(_COMPARED, values, low, high)}


def _without(size: int, fewer: int) -> np.ndarray:
  """Weights [draws, size] of what is kept: all subsets, or some of them."""
  if math.comb(size, fewer) <= _SUBSETS:
    rows = list(itertools.combinations(range(size), fewer))
  else:
    rng = np.random.default_rng(0)
    rows = [rng.choice(size, fewer, replace=False) for _ in range(_SUBSETS)]
  weights = np.ones((len(rows), size))
  np.put_along_axis(weights, np.array(rows), 0, 1)
  return weights


def chance(
    reference: np.ndarray, draw: Callable[[np.random.Generator], np.ndarray],
    draws: int, seed: int) -> dict[str, Any]:
  """Overlap of the reference with random circuits.

  Args:
    reference: the circuit, bool [n].
    draw: one random circuit, bool [n].
    draws: how many.
    seed: of the draws.

  Returns:
    `jaccard` and `kept`: means and the ranges of 95 % of the draws; `same`, how
    many are the reference.
  """
  rng = np.random.default_rng(seed)
  rows = [overlap(reference, draw(rng)) for _ in range(draws)]
  return _named(('jaccard', 'kept'), rows) | {
      'same': sum(jaccard == 1 for jaccard, _ in rows)}


def _named(
    names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
  """Mean and range of 95 % of each column."""
  columns = np.array(rows).T
  return {name: {'mean': float(column.mean()), 'interval': [
      float(x) for x in np.quantile(column, _TAILS)]}
          for name, column in zip(names, columns)} | {'draws': len(rows)}
