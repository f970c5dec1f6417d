"""Selects circuits from resampled, halved and reworded pairs, and runs them.

`circuits.stability` compares selections. This module makes and scores the pairs
and runs the circuits: two circuits may share few nodes and carry the behaviour
equally well, and only a run shows that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import select
from mansu_jax.circuits import stability
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.statistics import bootstrap

Settings = settings_lib.Settings
Pairs = Sequence[pairs_lib.AttributionPair]
Run = Callable[[np.ndarray], np.ndarray]  # Circuit [n] -> metrics [P].

_HALVINGS = 20
_RANDOM = 5  # Random circuits that are run on each set of other phrasings.
_FEWEST = 4  # Facts that halves need.


class GroupScores(NamedTuple):
  """Pairs that the model answers, with their scores by group of facts."""

  pairs: Pairs  # P pairs
  clean: np.ndarray  # [P], metric on the clean prompt
  corrupt: np.ndarray  # [P], metric on the corrupted prompt
  sums: stability.Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """How circuits of one level are selected and run.

  Candidates are numbered 0 to n - 1; a circuit is bool [n].

  Attributes:
    groups: group of each fact of all pairs that will be scored.
    reference: the circuit, bool [n].
    select: selects a circuit by mean scores [n].
    draw: draws a random circuit: with as many nodes in each layer, or of edges
      selected by permuted scores.
    score: scores pairs.
    make_run: makes the function that runs circuits on the first
      `--circuit_pairs` of some pairs.
    unflatten: converts a row [n] to arrays in the model's shape.
  """

  groups: dict[str, int]
  reference: np.ndarray
  select: stability.Select
  draw: Callable[[np.random.Generator], np.ndarray]
  score: Callable[[Pairs], GroupScores]
  make_run: Callable[[Pairs], Run]
  unflatten: Callable[[np.ndarray], Any]


class Selected(NamedTuple):
  """A circuit: how it was selected, and from which scores."""

  method: Method
  own: GroupScores


def measure(
    settings: Settings, selected: Selected, run: Run,
    cache: checkpoints.NoCache = checkpoints.NoCache()
) -> tuple[dict[str, Any], Any]:
  """Resamples and halves the pairs of a circuit.

  Args:
    settings: resamples, bootstrap and seed.
    selected: the circuit.
    run: runs circuits on the first of its pairs.
    cache: cache of finished stages.

  Returns:
    JSON-able report, and the share of resamples that select each candidate, in
    the model's shape. With too few facts, `reason` and None.
  """
  own = selected.own
  present = own.sums.counts > 0
  if present.sum() < _FEWEST:
    return {'reason': (
        f'the pairs that the model answers cover {present.sum()} facts; halves'
        f' need at least {_FEWEST}')}, None

  def make():
    report, shares = _select_again(settings, selected, run, present)
    return {'account': checkpoints.to_bytes(report), 'times': shares}

  found = cache.get_or_compute('stability', make)
  return checkpoints.from_bytes(found['account']), selected.method.unflatten(
      found['times'])


def _select_again(
    settings: Settings, selected: Selected, run: Run, present: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
  """The report of `measure`, and the shares of resamples [n]."""
  method, own = selected
  sums = stability.Sums(*(x[present] for x in own.sums))
  draws, seed = settings.circuit.resamples, settings.seed
  logging.info('selecting again: %d resamples (--circuit_resamples), %d halves',
               draws, _HALVINGS)
  resampled, shares = stability.resampled(
      sums, method.select, method.reference, draws, seed)
  firsts = stability.halvings(len(sums.counts), _HALVINGS, seed)
  halves = stability.halves(sums, method.select, firsts)
  in_first = np.zeros(present.size, bool)
  in_first[np.flatnonzero(present)[firsts[0]]] = True
  halves |= _cross_validate(settings, method, own, run, in_first)
  random = stability.random_overlap(
      method.reference, method.draw, draws, seed)
  return {
      'groups': int(present.sum()), 'facts': len({p.fact for p in own.pairs}),
      'resamples': resampled, 'halves': halves, 'random': random | (
          select.count_same(random['same'], draws, 'overlap'))}, shares


def _cross_validate(settings, method, own, run, in_first):
  """Faithfulness on each pair of the circuit of the half without the pair."""
  first, other = (run(method.select(own.sums.mean(side)))
                  for side in (in_first, ~in_first))  # Each [P].
  in_first = np.array([
      in_first[method.groups[p.fact]] for p in own.pairs[:len(first)]])
  return {
      'faithfulness': _faithfulness(
          settings, own, np.where(in_first, other, first)),
      'own_faithfulness': _faithfulness(settings, own, run(method.reference))}


def _faithfulness(
    settings: Settings, scored: GroupScores, metrics: np.ndarray
) -> dict[str, Any]:
  """Faithfulness of a circuit's metrics [P], with its interval by fact."""
  count = len(metrics)
  columns, index = bootstrap.columns_by_fact(
      [p.fact for p in scored.pairs[:count]], circuit=metrics,
      clean=scored.clean[:count], corrupt=scored.corrupt[:count])
  share = lambda m: (m[..., 0] - m[..., 2]) / (m[..., 1] - m[..., 2])
  return bootstrap.estimate(
      columns, index, share, None, bootstrap.LEVEL, settings.bootstrap,
      settings.seed).record()


def compare_phrasings(
    settings: Settings, selected: Selected, others: Mapping[str, Pairs]
) -> dict[str, Any]:
  """Compares a circuit with the circuits of other phrasings.

  Args:
    settings: pairs per run, bootstrap and seed.
    selected: the circuit.
    others: pairs of other phrasings, by use.

  Returns:
    JSON-able report by use.
  """
  return {use: _compare_phrasing(settings, *selected, pairs)
          for use, pairs in others.items()}


def _compare_phrasing(settings, method, own, pairs):
  found = method.score(pairs)
  facts = {p.fact for p in found.pairs}
  report = {'pairs': len(pairs), 'answered': len(found.pairs),
            'facts': len(facts)}
  if len(facts) < _FEWEST:
    return report | {'reason': (
        f'the model answers {len(found.pairs)} pairs on {len(facts)} facts;'
        f' wanted at least {_FEWEST} facts')}
  most = settings.circuit.pairs
  try:
    faithfulness.spread(
        float(found.clean[:most].sum()), float(found.corrupt[:most].sum()),
        len(found.pairs[:most]))
  except ValueError as error:
    return report | {'reason': str(error)}
  either = (found.sums.counts + own.sums.counts) > 0
  phrasings = stability.Phrasings(*(
      stability.Sums(*(x[either] for x in side.sums)) for side in (own, found)))
  run, rng = method.make_run(found.pairs), np.random.default_rng(settings.seed)
  randoms = [run(method.draw(rng)) for _ in range(_RANDOM)]
  share = lambda metrics: _faithfulness(settings, found, metrics)
  return report | stability.compare_phrasings(phrasings, method.select) | {
      'faithfulness': share(run(method.reference)),
      'own_faithfulness': share(run(method.select(found.sums.mean()))),
      'random_faithfulness': share(np.mean(randoms, 0)),
      'random_circuits': _RANDOM}
