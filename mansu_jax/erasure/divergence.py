"""CAD and AS-NC: is the structure gone, or only the answer?

With a_0 and a_u the signed node scores before and after unlearning, on the
same pairs, and C the circuit:

  CAD   = 1 - <a_0, a_u>_C / <a_0, a_0>_C        on forget pairs
  AS-NC = the same off C                         on retain pairs

0 is unchanged, 1 is gone, above 1 is reversed. Both describe, and decide
nothing: scores sum to the output, so they fade on every circuit once the answer
is gone, whether it was erased or hidden. Neither means anything without its
nulls. Every resample reweights the pairs, and inner products of weighted
means need only Gram matrices over pairs, so the nulls cost little more than
the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.statistics import intervals
from mansu_jax.statistics import resampling


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Gram matrices of per-pair scores [P, P] on one set of nodes."""

  before: np.ndarray  # <a_0 of pair i, a_0 of pair j>
  across: np.ndarray  # <a_0 of pair i, a_u of pair j>

  def __call__(
      self, weights: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """1 - <a_0, a_u> / <a_0, a_0>, of weighted means over pairs.

    Args:
      weights: weights of the pairs, [..., P] (sum 1).
      other: weights on the side of a_u; None: the same.
    """
    other = weights if other is None else other
    product = lambda gram, side: np.sum((weights @ gram) * side, -1)
    return 1 - product(self.across, other) / product(self.before, weights)


class _Grams:
  """Gram matrices of two models' scores on any set of nodes.

  Most nodes lie outside a circuit. The sums over them are those over all nodes,
  computed once, less those over the other nodes.
  """

  def __init__(
      self, before: eap_ig.PairScores, after: eap_ig.PairScores,
      nodes: graph.Circuit):
    """Prepares the scores; computes nothing.

    Args:
      before: scores of the base model, [P, ...].
      after: scores of the unlearned model on the same pairs.
      nodes: any nodes; gives the number of key/value heads.
    """
    self._scores = dict(zip(graph.KINDS, zip(
        _by_kind(before, nodes), _by_kind(after, nodes))))
    self._all: dict[str, np.ndarray] = {}

  def __call__(self, nodes: graph.Circuit) -> Divergence:
    """Gram matrices on some nodes."""
    grams = 0.0
    for kind, scores in self._scores.items():
      chosen = nodes[kind].ravel()
      if 2 * chosen.sum() <= chosen.size:
        grams = grams + _gram(*scores, chosen)
        continue
      if kind not in self._all:
        self._all[kind] = _gram(*scores, slice(None))
      grams = grams + self._all[kind] - _gram(*scores, ~chosen)
    return Divergence(*np.split(grams, 2, axis=1))


def _by_kind(
    scores: eap_ig.PairScores, nodes: graph.Circuit) -> list[np.ndarray]:
  """Scores of each pair on all nodes of each kind, each float64 [P, nodes]."""
  pairs, layers = scores.heads.shape[:2]
  grouped = scores.heads.reshape(pairs, layers, nodes.kv_heads.shape[1], -1)
  return [x.reshape(pairs, -1).astype(np.float64)
          for x in (scores.neurons, scores.heads, grouped.sum(-1))]


def _gram(
    before: np.ndarray, after: np.ndarray,
    chosen: np.ndarray | slice) -> np.ndarray:
  """<a_0, a_0> and <a_0, a_u> on the chosen nodes, side by side, [P, 2 P]."""
  before, after = before[:, chosen], after[:, chosen]
  return before @ np.concatenate([before, after]).T


def compare(
    before: eap_ig.PairScores, after: eap_ig.PairScores,
    nodes: graph.Circuit) -> Divergence:
  """The divergence of two models' scores on the same pairs and nodes.

  Args:
    before: scores of the base model, [P, ...].
    after: scores of the unlearned model on the same pairs.
    nodes: the circuit (CAD), or the nodes `outside` it (AS-NC).

  The example measures CAD over two pairs, where unlearning halves the score of
  the only neuron in the circuit.

  Example:
    >>> circuit = graph.Circuit(
    ...     neurons=np.array([[True, False]]), heads=np.zeros((1, 1), bool),
    ...     kv_heads=np.zeros((1, 1), bool))
    >>> scores = lambda own: eap_ig.PairScores(
    ...     neurons=np.array([[[own, 3.0]]] * 2), heads=np.zeros((2, 1, 1)),
    ...     metric_clean=np.ones(2), metric_corrupt=-np.ones(2),
    ...     token_roles=np.zeros((2, 1, 2, 3)))
    >>> cad = compare(scores(1.0), scores(0.5), circuit)
    >>> float(cad(np.array([0.5, 0.5])))
    0.5
  """
  return _Grams(before, after, nodes)(nodes)


def outside(circuit: graph.Circuit, level: str) -> graph.Circuit:
  """All nodes outside the circuit, of the kinds of a level."""
  kinds = graph.LEVEL_KINDS[level]
  return graph.Circuit(**{
      kind: ~circuit[kind] if kind in kinds else np.zeros_like(circuit[kind])
      for kind in graph.KINDS})


def _uniform(num: int) -> np.ndarray:
  return np.full(num, 1 / num)


def measure(
    before: eap_ig.PairScores, after: eap_ig.PairScores,
    beside: Mapping[str, eap_ig.PairScores], nodes: graph.Circuit,
    groups: np.ndarray, *, resamples: int, seed: int,
    random_nodes: Callable[[np.random.Generator], graph.Circuit] | None = None,
    random_circuits: int = 20) -> dict[str, Any]:
  """A divergence with its interval and nulls.

  Args:
    before: scores of the base model, [P, ...].
    after: scores of the unlearned model on the same pairs.
    beside: scores of models that give a null of one value, by name: the
      quantized base, the suppression control.
    nodes: the circuit (CAD) or the nodes outside it (AS-NC).
    groups: fact of each pair, [P]; facts are resampled.
    resamples: number of bootstrap draws, and of random halvings.
    seed: seed of all draws.
    random_nodes: draws a random counterpart of `nodes`; None: no such null.
    random_circuits: number of such draws.

  Returns:
    `value`, `interval` (95 %), `pairs`, and `nulls`: `prompt_halves` and, if
    asked for, `random_circuits` (each with mean, 95 % level and draws; the
    latter also with the number that are the `same` nodes), and one for each
    model of `beside` (value, and the paired interval of the difference).

  Raises:
    eap_ig.TooFewAnswered: there are fewer than two facts.
  """
  facts = np.unique(groups).size
  if facts < 2:
    raise eap_ig.TooFewAnswered(
        f'CAD needs pairs of at least 2 facts to resample; got {facts}. Raise'
        ' --eval_cad_pairs.')
  interval = lambda draws: intervals.interval(draws, facts)
  rng = np.random.default_rng(seed)
  grams = _Grams(before, after, nodes)
  main, same = grams(nodes), compare(before, before, nodes)
  draws = resampling.weights(groups, resamples, rng)
  uniform, values = _uniform(groups.size), main(draws)
  halves = np.array([
      same(*resampling.halves(groups, rng)) for _ in range(resamples)])
  nulls = {'prompt_halves': _null(halves)}
  for name, scores in beside.items():
    other = compare(before, scores, nodes)
    nulls[name] = {
        'value': float(other(uniform)),
        'difference_interval': interval(values - other(draws))}
  if random_nodes is not None:
    drawn = [random_nodes(rng) for _ in range(random_circuits)]
    randoms = [grams(some) for some in drawn]
    nulls['random_circuits'] = _null(
        np.array([one(uniform) for one in randoms])) | {
            'same': sum(graph.equal(nodes, some) for some in drawn),
            'difference_interval': interval(values - np.mean(
                [one(draws) for one in randoms], axis=0))}
  return {'value': float(main(uniform)),
          'interval': interval(values),
          'pairs': int(groups.size), 'nulls': nulls}


def _null(values: np.ndarray) -> dict[str, Any]:
  return {'mean': float(values.mean()),
          'level_95': float(np.quantile(values, intervals.LEVEL)),
          'level_5': float(np.quantile(values, 1 - intervals.LEVEL)),
          'draws': int(values.size)}
