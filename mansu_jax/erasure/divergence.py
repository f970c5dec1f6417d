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

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.erasure import resampling


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Gram matrices of per-pair scores [P, P] on one set of nodes."""

  before: np.ndarray  # <a_0 of pair i, a_0 of pair j>
  across: np.ndarray  # <a_0 of pair i, a_u of pair j>

  def __call__(
      self, weights: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """1 - <a_0, a_u> / <a_0, a_0> with pairs weighted [..., P] (sum 1)."""
    other = weights if other is None else other
    product = lambda gram, side: np.sum((weights @ gram) * side, -1)
    return 1 - product(self.across, other) / product(self.before, weights)


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


def measure(
    before: eap_ig.PairScores, after: eap_ig.PairScores,
    beside: Mapping[str, eap_ig.PairScores], nodes: graph.Circuit,
    groups: np.ndarray, *, resamples: int, seed: int,
    random_nodes: Callable[[np.random.Generator], graph.Circuit] | None = None,
    random_circuits: int = 20) -> dict[str, Any]:
  """A divergence with its interval and nulls.

  Args:
    before: scores of the base model, [P, ...].
    after: of the unlearned model, on the same pairs.
    beside: of models that give a null of one value each, by name: the quantized
      base, the suppression control.
    nodes: the circuit (CAD) or what is outside it (AS-NC).
    groups: fact of each pair, [P]; resampling is by fact.
    resamples: bootstrap draws, and random halvings.
    seed: of all draws.
    random_nodes: draws nodes in the place of `nodes`, of a random circuit of
      the same shape; None: no such null.
    random_circuits: how many of them.

  Returns:
    `value`, `interval` (95 %), and `nulls`: `prompt_halves` and, where asked
    for, `random_circuits` (each with mean, 95 % level and draws; of the latter
    also how many are the `same` nodes), and those of `beside` (value, and the
    paired interval of value minus it).

  Raises:
    eap_ig.TooFewAnswered: fewer than two facts.
  """
  facts = np.unique(groups).size
  if facts < 2:
    raise eap_ig.TooFewAnswered(
        f'CAD needs pairs of at least 2 facts to resample; got {facts}. Raise'
        ' --eval_cad_pairs.')
  interval = lambda draws: resampling.interval(draws, facts)
  rng = np.random.default_rng(seed)
  main, same = compare(before, after, nodes), compare(before, before, nodes)
  draws = np.stack([resampling.weights(groups, rng) for _ in range(resamples)])
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
    randoms = [compare(before, after, some) for some in drawn]
    nulls['random_circuits'] = _null(
        np.array([one(uniform) for one in randoms])) | {
            'same': sum(_same(nodes, some) for some in drawn),
            'difference_interval': interval(values - np.mean(
                [one(draws) for one in randoms], axis=0))}
  return {'value': float(main(uniform)),
          'interval': interval(values),
          'pairs': int(groups.size), 'nulls': nulls}


def _same(one: graph.Circuit, other: graph.Circuit) -> bool:
  return all(np.array_equal(one[kind], other[kind]) for kind in graph.KINDS)


def _null(values: np.ndarray) -> dict[str, Any]:
  return {'mean': float(values.mean()),
          'level_95': float(np.quantile(values, resampling.LEVEL)),
          'level_5': float(np.quantile(values, 1 - resampling.LEVEL)),
          'draws': int(values.size)}


_WANTED = {  # Nulls of CAD without which S does not pass, and why not.
    'random_circuits': (
        'the circuit holds every node of its layers, so that there is no random'
        ' circuit to compare with'),
    'suppression': (
        'there is no matched output-suppression control to compare with')}


def structural_erasure(
    cad: dict[str, Any], as_nc: dict[str, Any]) -> dict[str, Any]:
  """Property S: CAD above all its nulls, AS-NC within all of its own.

  Against a null that is resampled: beyond its 95 % level for CAD, not beyond it
  for AS-NC, whose null is what no edit at all would give; with the level in the
  interval of a value that is on the wrong side, inconclusive. Against a null of
  one value, by the paired interval. Without random circuits, or without the
  suppression control, S does not pass.
  """
  checks = {f'cad_above_{name}': _beyond(cad, null, 1)
            for name, null in cad['nulls'].items()}
  checks |= {f'as_nc_below_{name}': _beyond(as_nc, null, -1)
             for name, null in as_nc['nulls'].items()}
  levels = [null['level_95'] for null in cad['nulls'].values()
            if 'level_95' in null]
  out = {'value': cad['value'], 'interval': cad['interval'],
         'threshold': max(levels), 'checks': checks,
         'passed': resampling.all_of(checks.values()),
         'measure': 'CAD; the threshold is the highest 95 % level of a null'}
  if out['passed'] == 'inconclusive':
    open_ = [k.replace('_', ' ') for k, v in checks.items()
             if v == 'inconclusive']
    out['reason'] = f'the intervals leave open: {", ".join(open_)}'
  lacking = [why for name, why in _WANTED.items() if name not in cad['nulls']]
  if out['passed'] is True and lacking:
    out |= {'passed': 'inconclusive', 'reason': '; '.join(lacking)}
  return out


def at_every_precision(
    cad: dict[str, Any], as_nc: dict[str, Any]) -> dict[str, Any]:
  """S in full precision and, in `by_precision`, under each quantizer.

  It fails where it fails at any, and passes where it passes at all of them.
  """
  out = structural_erasure(cad, as_nc)
  others = {name: structural_erasure(
      cad['by_precision'][name], as_nc['by_precision'][name])
            for name in cad.get('by_precision', {})}
  passed = resampling.all_of(
      [out['passed'], *(other['passed'] for other in others.values())])
  if passed != out['passed']:
    named = [name for name, other in others.items()
             if other['passed'] == passed]
    out['reason'] = f'{_WHY[passed]} under {", ".join(named)}'
  return out | {'passed': passed, 'by_precision': others}


_WHY = {False: 'it fails', 'inconclusive': 'the intervals leave it open'}


def _beyond(
    found: dict[str, Any], null: dict[str, Any], sign: int
) -> resampling.Verdict:
  """Whether a value is above (sign 1) or below (-1) a null."""
  if 'level_95' not in null:
    side = resampling.above if sign > 0 else resampling.below
    return side(null['difference_interval'])
  side = resampling.beyond if sign > 0 else resampling.within
  return side(found, null['level_95'])
