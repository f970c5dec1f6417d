"""Copy-back: the share of the answers that undoing a part of the edit restores.

With acc the accuracy after theta_0 is copied back on a part of the model:

  share = (acc - acc_u) / (acc_0 - acc_u)

A share by itself says little, because undoing more of the edit restores more
answers, whichever the nodes. The best half of the circuit is therefore compared
with random halves that hold a similar share of the moved weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.circuits import select
from mansu_jax.models import config as model_config
from mansu_jax.statistics import intervals
from mansu_jax.statistics import resampling

_DRAWN = 200  # Random halves from which the compared ones are chosen.


class Halves(NamedTuple):
  """Halves of a circuit: the best one, then random ones; or none."""

  circuits: list[graph.Circuit]
  moved: list[float]  # Share of the circuit's moved weights, for each half.


def choose_halves(
    config: model_config.ModelConfig, base: types.Params,
    unlearned: types.Params, circuit: graph.Circuit,
    scores: dict[str, np.ndarray], layers: range, rng: np.random.Generator, *,
    count: int) -> Halves:
  """The half of a circuit with the best scores, and random halves.

  Random halves have as many nodes of each kind in each layer. The chosen ones
  are those whose share of the moved weights is nearest to the best half's.

  Args:
    config: the model's config.
    base: full params before unlearning.
    unlearned: full params after unlearning.
    circuit: the circuit.
    scores: mean scores by kind, [L, nodes].
    layers: the layers that may hold the circuit.
    rng: generator of the random halves.
    count: number of random halves.
  """
  best = select.best_half(circuit, scores, config)
  if not best.kinds:
    return Halves([], [])
  by_node = param_mask.moved(base, unlearned)
  moved = lambda half: sum(
      float(by_node[kind][half[kind]].sum()) for kind in graph.KINDS)
  total, most = max(moved(circuit), 1.0), moved(best)
  drawn = sorted(
      (select.matched_random(best, layers, rng, among=circuit)
       for _ in range(_DRAWN)), key=lambda half: abs(moved(half) - most))
  halves = [best, *drawn[:count]]
  return Halves(halves, [moved(half) / total for half in halves])


class RecoveredShare:
  """Computes shares of the lost accuracy, with intervals by fact.

  Args:
    facts: fact of each question, [m].
    resamples: number of bootstrap resamples.
    seed: seed of the resamples.

  Example:
    >>> share = RecoveredShare(np.arange(4), resamples=100, seed=0)
    >>> lost = np.array([1.0, 1.0, 1.0, 1.0])
    >>> share(np.array([1.0, 1.0, 1.0, 0.0]), lost)['share']
    0.75
  """

  def __init__(self, facts: np.ndarray, *, resamples: int, seed: int):
    even = np.full((1, facts.size), 1 / facts.size)
    self._weights = np.concatenate([even, resampling.weights(
        facts, resamples, np.random.default_rng(seed))])  # [1 + resamples, m]
    self._facts = np.unique(facts).size

  def __call__(self, gained: np.ndarray, lost: np.ndarray) -> dict[str, Any]:
    """The share and its 95 % interval; None if a resample lost nothing.

    Args:
      gained: accuracy gained over the unlearned model, by question [m].
      lost: accuracy of the base over the unlearned model, [m].
    """
    lost, back = self._weights @ lost, self._weights @ gained
    if (lost <= 0).any():
      return {'share': None, 'interval': [None, None]}
    values = back / lost
    return {'share': float(values[0]),
            'interval': intervals.interval(values[1:], self._facts)}
