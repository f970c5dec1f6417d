"""CAD and AS-NC: has the structure gone, or only the answer?

With a_0 and a_u the signed node scores before and after unlearning, on the
same pairs, and C the circuit:

  CAD   = 1 - <a_0, a_u>_C / <a_0, a_0>_C        on forget pairs
  AS-NC = the same off C                         on retain pairs

0 is unchanged, 1 gone, above 1 reversed. Neither means anything alone, so
both come with their nulls. Every resampling is a reweighting of pairs, and
inner products of weighted means need only Gram matrices over pairs; so the
nulls cost nothing beside the scores.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Gram matrices of per-pair scores [P, P] on one set of nodes."""

  before: np.ndarray  # <a_0 of pair i, a_0 of pair j>
  across: np.ndarray  # <a_0 of pair i, a_u of pair j>

  def __call__(
      self, weights: np.ndarray, other: np.ndarray | None = None) -> float:
    """1 - <a_0, a_u> / <a_0, a_0> with pairs weighted [P] (sum 1)."""
    other = weights if other is None else other
    return float(1 - weights @ self.across @ other
                 / (weights @ self.before @ weights))


def _vectors(scores: eap_ig.PairScores, nodes: graph.Circuit) -> np.ndarray:
  """Per-pair scores on the member nodes, [P, nodes]."""
  grouped = scores.heads.reshape(
      *scores.heads.shape[:2], nodes.kv_heads.shape[1], -1)
  parts = [scores.neurons[:, nodes.neurons], scores.heads[:, nodes.heads],
           grouped.sum(-1)[:, nodes.kv_heads]]
  return np.concatenate(parts, axis=1).astype(np.float64)


def compare(
    before: eap_ig.PairScores, after: eap_ig.PairScores,
    nodes: graph.Circuit) -> Divergence:
  """The divergence of two models' scores on the same pairs and nodes."""
  a_0, a_u = _vectors(before, nodes), _vectors(after, nodes)
  return Divergence(before=a_0 @ a_0.T, across=a_0 @ a_u.T)


def outside(circuit: graph.Circuit, level: str) -> graph.Circuit:
  """All nodes of the level's kinds that are not in the circuit."""
  kinds = graph.LEVEL_KINDS[level]
  return graph.Circuit(**{
      kind: ~circuit[kind] if kind in kinds else np.zeros_like(circuit[kind])
      for kind in graph.KINDS})


def _uniform(num: int) -> np.ndarray:
  return np.full(num, 1 / num)


def _resampled(
    groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Pair weights of one bootstrap draw of facts."""
  unique, inverse = np.unique(groups, return_inverse=True)
  counts = np.bincount(
      rng.integers(unique.size, size=unique.size), minlength=unique.size)
  weights = counts[inverse].astype(np.float64)
  return weights / weights.sum()


def _halves(
    groups: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Pair weights of two disjoint halves of the facts."""
  unique, inverse = np.unique(groups, return_inverse=True)
  first = rng.permutation(unique.size) < unique.size // 2
  sides = [first[inverse], ~first[inverse]]
  return tuple(side / side.sum() for side in sides)


def measure(
    before: eap_ig.PairScores, after: eap_ig.PairScores,
    quantized: eap_ig.PairScores, nodes: graph.Circuit, groups: np.ndarray,
    *, resamples: int, seed: int,
    random_nodes: Callable[[np.random.Generator], graph.Circuit] | None = None,
    random_circuits: int = 20) -> dict[str, Any]:
  """A divergence with its interval and nulls.

  Args:
    before: scores of the base model, [P, ...].
    after: of the unlearned model, on the same pairs.
    quantized: of the quantized base, on the same pairs.
    nodes: the circuit (CAD) or what is outside it (AS-NC).
    groups: fact of each pair, [P]; resampling is by fact.
    resamples: bootstrap draws, and random halvings.
    seed: of all draws.
    random_nodes: draws a random circuit of the same shape; None: no such null.
    random_circuits: how many of them.

  Returns:
    `value`, `interval` (95 %), and `nulls`: `prompt_halves` and, where asked
    for, `random_circuits` (each with mean and 95 % level), and
    `base_quantized` (value, and the paired interval of value minus it).

  Raises:
    eap_ig.TooFewAnswered: fewer than two facts.
  """
  if np.unique(groups).size < 2:
    raise eap_ig.TooFewAnswered(
        f'CAD needs pairs of at least 2 facts to resample; got'
        f' {np.unique(groups).size}. Raise --eval_cad_pairs.')
  rng = np.random.default_rng(seed)
  main = compare(before, after, nodes)
  rounding = compare(before, quantized, nodes)
  same = compare(before, before, nodes)
  uniform = _uniform(groups.size)
  draws = [_resampled(groups, rng) for _ in range(resamples)]
  values = np.array([main(w) for w in draws])
  paired = values - np.array([rounding(w) for w in draws])
  halves = np.array([same(*_halves(groups, rng)) for _ in range(resamples)])
  nulls = {
      'prompt_halves': _null(halves),
      'base_quantized': {
          'value': rounding(uniform),
          'difference_interval': _interval(paired)},
  }
  if random_nodes is not None:
    nulls['random_circuits'] = _null(np.array([
        compare(before, after, random_nodes(rng))(uniform)
        for _ in range(random_circuits)]))
  return {'value': main(uniform), 'interval': _interval(values),
          'pairs': int(groups.size), 'nulls': nulls}


def _interval(values: np.ndarray) -> list[float]:
  return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def _null(values: np.ndarray) -> dict[str, Any]:
  return {'mean': float(values.mean()),
          'level_95': float(np.quantile(values, _LEVEL)),
          'draws': int(values.size)}


def structural_erasure(
    cad: dict[str, Any], as_nc: dict[str, Any]) -> dict[str, Any]:
  """Property S: CAD above all its nulls, AS-NC below all of its own.

  Without the null of random circuits it may fail, and does not pass.
  """
  checks = {
      f'cad_above_{name}': bool(cad['value'] > null['level_95'])
      for name, null in cad['nulls'].items() if 'level_95' in null}
  checks['cad_above_base_quantized'] = bool(
      cad['nulls']['base_quantized']['difference_interval'][0] > 0)
  checks['as_nc_below_prompt_halves'] = bool(
      as_nc['value'] < as_nc['nulls']['prompt_halves']['level_95'])
  checks['as_nc_below_base_quantized'] = bool(
      as_nc['nulls']['base_quantized']['difference_interval'][1] < 0)
  levels = [null['level_95'] for null in cad['nulls'].values()
            if 'level_95' in null]
  out = {'value': cad['value'], 'interval': cad['interval'],
         'threshold': max(levels), 'checks': checks,
         'passed': all(checks.values()),
         'measure': 'CAD; the threshold is the highest 95 % level of a null'}
  if out['passed'] and 'random_circuits' not in cad['nulls']:
    out |= {'passed': 'inconclusive', 'reason': (
        'the circuit holds every node of its layers, so that there is no random'
        ' circuit to compare with')}
  return out
