"""The circuit of other pairs: resampled, halved, and in other words.

`circuits.stability` compares selections; here pairs are made and scored, and
the circuits are run: a circuit that shares few nodes with another may carry
the behaviour as well, and only a run tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import stability
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.runtime import checkpoints
from mansu_jax.statistics import bootstrap

Pairs = Sequence[pairs_lib.AttributionPair]
Patched = Callable[[np.ndarray], np.ndarray]  # Circuit [n] -> metrics [P].

_HALVINGS = 20
_RANDOM = 5  # Circuits run on other phrasings.
_FEWEST = 4  # Facts.
_USES = ('near', 'far')


class Scored(NamedTuple):
  """What the answered of some pairs gave."""

  pairs: Pairs  # P of them
  clean: np.ndarray  # [P]
  corrupt: np.ndarray  # [P]
  sums: stability.Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """How circuits of one level are found and run; places as in a row.

  Attributes:
    groups: of each fact of all pairs that will be scored.
    reference: the circuit, bool [n].
    select: from mean scores [n] to a circuit.
    draw: a random circuit: of nodes as many in each layer, of edges one
      selected by permuted scores.
    score: of pairs.
    patch: what runs circuits on pairs, at most `--circuit_pairs`.
    place: from a row [n] to arrays of the model's shape.
  """

  groups: dict[str, int]
  reference: np.ndarray
  select: stability.Select
  draw: Callable[[np.random.Generator], np.ndarray]
  score: Callable[[Pairs], Scored]
  patch: Callable[[Pairs], Patched]
  place: Callable[[np.ndarray], Any]


class Selected(NamedTuple):
  """A circuit with what gave it."""

  method: Method
  own: Scored


def measure(
    config: run_config.RunConfig, selected: Selected, run: Patched,
    cache: checkpoints.NoCache = checkpoints.NoCache()
) -> tuple[dict[str, Any], Any]:
  """Resamples and halves the pairs of a circuit.

  Args:
    config: the run's.
    selected: the circuit.
    run: what runs circuits on the first of its pairs.
    cache: the stages of a run that can go on.

  Returns:
    JSON-able account, and the share of resamples in which each candidate is
    selected, in its place; `reason` and None where there are too few facts.
  """
  own = selected.own
  present = own.sums.counts > 0
  if present.sum() < _FEWEST:
    return {'reason': (
        f'the pairs that the model answers are of {present.sum()} facts;'
        f' wanted {_FEWEST}, to halve them')}, None

  def make():
    account, times = _select_again(config, selected, run, present)
    return {'account': checkpoints.to_bytes(account), 'times': times}

  found = cache.get_or_compute('stability', make)
  return checkpoints.from_bytes(found['account']), selected.method.place(
      found['times'])


def _select_again(
    config: run_config.RunConfig, selected: Selected, run: Patched,
    present: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
  """The account of `measure`, and the shares [n]."""
  method, own = selected
  sums = stability.Sums(*(x[present] for x in own.sums))
  draws, seed = config.circuit.resamples, config.seed
  logging.info('selecting again: %d resamples (--circuit_resamples), %d halves',
               draws, _HALVINGS)
  again, times = stability.resampled(
      sums, method.select, method.reference, draws, seed)
  firsts = stability.halvings(len(sums.counts), _HALVINGS, seed)
  halves = stability.halves(sums, method.select, firsts)
  in_first = np.zeros(present.size, bool)
  in_first[np.flatnonzero(present)[firsts[0]]] = True
  halves |= _crossed(config, method, own, run, in_first)
  random = stability.chance(method.reference, method.draw, draws, seed)
  return {
      'groups': int(present.sum()), 'facts': len({p.fact for p in own.pairs}),
      'resamples': again, 'halves': halves, 'random': random | (
          select.count_same(random['same'], draws, 'overlap'))}, times


def _crossed(config, method, own, run, in_first):
  """Faithfulness on each pair of the circuit that the other half gave."""
  sides = [method.select(own.sums.mean(side)) for side in (
      in_first, ~in_first)]
  first, other = map(run, sides)  # [P], P the first of the pairs.
  in_first = np.array([
      in_first[method.groups[p.fact]] for p in own.pairs[:len(first)]])
  return {
      'faithfulness': _faithful(config, own, np.where(in_first, other, first)),
      'own_faithfulness': _faithful(config, own, run(method.reference))}


def _faithful(
    config: run_config.RunConfig, scored: Scored, metrics: np.ndarray
) -> dict[str, Any]:
  """Faithfulness with its interval, by fact, of metrics [P] of a circuit."""
  count = len(metrics)
  columns, index = bootstrap.columns_by_fact(
      [p.fact for p in scored.pairs[:count]], circuit=metrics,
      clean=scored.clean[:count], corrupt=scored.corrupt[:count])
  share = lambda m: (m[..., 0] - m[..., 2]) / (m[..., 1] - m[..., 2])
  return bootstrap.estimate(
      columns, index, share, None, bootstrap.LEVEL, config.eval.bootstrap,
      config.seed).record()


def phrasings(
    config: run_config.RunConfig, splits: splits_lib.Splits, tokenizer: Any
) -> dict[str, Pairs]:
  """Pairs of the forget facts in phrasings that no attribution saw, by use.

  They are made as those of the train phrasings, and as many. Pairs of a file
  have no other phrasings.
  """
  if config.attribution.pairs_file or not config.circuit.resamples:
    return {}
  made = {}
  for use, split in zip(_USES, splits_lib.FORGOTTEN):
    asked = [dataclasses.replace(q, use='train')
             for q in splits.evaluation[split]]
    try:
      made[use] = pairs_lib.build_pairs(
          asked, tokenizer, max_pairs=config.attribution.max_pairs,
          seed=config.seed, others=splits.retain_train,
          chat=config.data.chat) if asked else []
    except pairs_lib.NoPairs:
      made[use] = []
  return {use: pairs for use, pairs in made.items() if pairs}


def reworded(
    config: run_config.RunConfig, selected: Selected,
    others: Mapping[str, Pairs]) -> dict[str, Any]:
  """Compares the circuit with those of other phrasings, and runs it there."""
  return {use: _in_other_words(config, *selected, pairs)
          for use, pairs in others.items()}


def _in_other_words(config, method, own, pairs):
  found = method.score(pairs)
  facts = {p.fact for p in found.pairs}
  account = {'pairs': len(pairs), 'answered': len(found.pairs),
             'facts': len(facts)}
  if len(facts) < _FEWEST:
    return account | {'reason': (
        f'the model answers {len(found.pairs)} of them, of {len(facts)} facts;'
        f' wanted {_FEWEST}')}
  measured = [float(x[:config.circuit.pairs].sum())
              for x in (found.clean, found.corrupt)]
  try:
    faithfulness.spread(*measured, len(found.pairs[:config.circuit.pairs]))
  except ValueError as error:
    return account | {'reason': str(error)}
  either = (found.sums.counts + own.sums.counts) > 0
  words = stability.Words(*(stability.Sums(*(x[either] for x in side.sums))
                             for side in (own, found)))
  run, rng = method.patch(found.pairs), np.random.default_rng(config.seed)
  randoms = [run(method.draw(rng)) for _ in range(_RANDOM)]
  tell = lambda metrics: _faithful(config, found, metrics)
  return account | stability.other_words(words, method.select) | {
      'faithfulness': tell(run(method.reference)),
      'own_faithfulness': tell(run(method.select(found.sums.mean()))),
      'random_faithfulness': tell(np.mean(randoms, 0)),
      'random_circuits': _RANDOM}


class Nodes:
  """The nodes that may be in a circuit, in a row."""

  def __init__(self, config: run_config.RunConfig, shape: Any):
    self._shape = shape
    self._kinds = select.candidate_kinds(config)
    self._layers = select.layer_range(config.circuit, shape.num_layers)

  def row(self, nodes: Any) -> np.ndarray:
    """From arrays [..., L, nodes] by kind to one [..., n]."""
    parts = [nodes[kind][..., self._layers, :] for kind in self._kinds]
    return np.concatenate([  # There may be no pair: -1 cannot be told.
        p.reshape(*p.shape[:-2], p.shape[-2] * p.shape[-1]) for p in parts], -1)

  def by_kind(self, row: np.ndarray) -> dict[str, np.ndarray]:
    """Back from a row [n]; 0 where no candidate is."""
    out, start = {}, 0
    for kind, whole in graph.shapes(self._shape).items():
      out[kind] = np.zeros(whole, row.dtype)
      if kind in self._kinds:
        part = out[kind][self._layers]
        stop = start + part.size
        out[kind][self._layers] = row[start:stop].reshape(part.shape)
        start = stop
    return out

  def of_pairs(self, scores: eap_ig.PairScores) -> np.ndarray:
    """Each pair's scores, [P, n]."""
    heads = scores.heads
    kv_heads = self._shape.num_kv_heads
    grouped = heads.reshape(
        *heads.shape[:2], kv_heads, heads.shape[2] // kv_heads)
    return self.row({'neurons': scores.neurons, 'heads': heads,
                     'kv_heads': grouped.sum(-1)})


def of_nodes(
    config: run_config.RunConfig, model: Any, circuit: graph.Circuit,
    choose: Callable[[dict[str, np.ndarray]], graph.Circuit],
    groups: dict[str, int], pairs: Pairs, scores: eap_ig.PairScores
) -> Selected:
  """A circuit of nodes with what gave it.

  Args:
    config: the run's.
    model: the base model.
    circuit: the reference.
    choose: from mean scores by kind to a circuit.
    groups: of each fact of all pairs that will be scored.
    pairs: P, all answered.
    scores: theirs.
  """
  nodes = Nodes(config, model.config)
  layers = select.layer_range(config.circuit, model.config.num_layers)

  def collect(pairs: Pairs, scores: eap_ig.PairScores) -> Scored:
    index = np.array([groups[p.fact] for p in pairs], int)
    return Scored(pairs, scores.metric_clean, scores.metric_corrupt,
                  stability.add_up(nodes.of_pairs(scores), index,
                                    max(groups.values()) + 1))

  def score(pairs: Pairs) -> Scored:
    found = eap_ig.score_pairs(
        model.config, model.params,
        pair_batches.to_score(
            pairs, config.attribution.batch, model.config),
        steps=config.attribution.steps)
    answered = found.metric_clean > 0
    return collect(
        [p for p, is_kept in zip(pairs, answered) if is_kept],
        eap_ig.PairScores(*(x[answered] for x in found)))

  def patch(pairs: Pairs) -> Patched:
    size = config.circuit.pairs
    batch = pair_batches.pack(pairs[:size], size)[0]
    run = faithfulness.Faithfulness(
        model.config, model.params, jax.device_put(batch),
        config.attribution.level, layers)
    return lambda row: run.metrics(place(row))

  place = lambda row: graph.Circuit(**nodes.by_kind(row))
  return Selected(Method(
      groups=groups, reference=nodes.row(circuit), score=score, patch=patch,
      place=place,
      select=lambda means: nodes.row(choose(nodes.by_kind(means))),
      draw=lambda rng: nodes.row(select.matched_random(circuit, layers, rng))
  ), collect(pairs, scores))
