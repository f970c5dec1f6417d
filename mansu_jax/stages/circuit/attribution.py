"""Forget pairs -> node scores -> circuit, with its faithfulness."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import curve
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import stability as stability_lib
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_weights
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import progress
from mansu_jax.stages.circuit import edge_attribution
from mansu_jax.stages.circuit import edge_stability
from mansu_jax.stages.circuit import circuit_summary
from mansu_jax.stages.circuit import stability
from mansu_jax.stages.prepare import inputs as inputs_lib

_CONTRAST_PAIRS = 64  # Of the retain set, where forget pairs are a file's.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What attribution leaves for the rest of the run.

  Attributes:
    circuit: the weights that may change.
    ranking: all candidate nodes, best first.
    means: mean scores by kind of node.
    report: JSON-able account (sizes, faithfulness, pairs).
    selected: how it was selected, to do so from other pairs; None where each
      pair's scores were not kept.
    edges: the edges that it stands for, at level edge.
    movable: at level edge, by leaf name [L, nodes], which parts of the nodes'
      weights are at the end of an edge; None: all.
  """

  circuit: graph.Circuit
  ranking: select.Ranking
  means: dict[str, np.ndarray]
  report: dict[str, Any]
  selected: stability.Selected | None = None
  edges: edge_circuit.EdgeCircuit | None = None
  movable: dict[str, np.ndarray] | None = None


class Ends(NamedTuple):
  """The weights at the ends of a circuit's edges."""

  carried: dict[str, np.ndarray]  # [L, nodes] by kind
  movable: dict[str, np.ndarray]  # Bool [L, nodes] by leaf name


def find(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, model: Any,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> Found:
  """The circuit of a run: pairs, scores, selection.

  Args:
    config: the run's.
    inputs: its data.
    model: the base model.
    cache: the stages of a run that can go on.
  """
  pairs = forget_pairs(config, inputs.splits, model.tokenizer)
  done = cache.get_or_compute(
      'attribution', lambda: score(config, model, pairs))
  answered = [p for p, kept in zip(pairs, done['answered']) if kept]
  retain, contrast = [], None
  if config.circuit.contrast:
    retain = retain_pairs(
        config, inputs.splits, model.tokenizer)
    contrast = cache.get_or_compute(
        'contrast', lambda: score(config, model, retain))
  if config.attribution.level == 'edge':
    kept = [p for p, is_kept in zip(retain, contrast['answered']) if is_kept
            ] if contrast else []
    found = _find_edges(config, model, answered, done['means'], kept, cache)
  else:
    found = find_circuit(
        config, model, answered, done['means'],
        contrast and contrast['means'], done.get('each'), cache=cache)
  found.report['summary']['token_roles'] = circuit_summary.by_role(done['token_roles'])
  found.report.update(describe_file(config, model.tokenizer))
  return found


def _find_edges(config, model, pairs, means, retain, cache) -> Found:
  """A circuit of edges, and the weights that it stands for."""
  score_edges = lambda pairs: {
      'edges': edge_attribution.mean_scores(config, model, pairs)}
  own, groups = _edge_sums(config, model, pairs, cache)
  scores = cache.get_or_compute('edges', lambda: score_edges(pairs))['edges'] if (
      own is None) else edge_stability.whole(own.sums.mean(), model.config)
  contrast = cache.get_or_compute('edges_contrast', lambda: score_edges(
      retain))['edges'] if retain else None
  edges = edge_attribution.select_edges(
      config, model.config, scores, contrast)
  edge_attribution.refuse_empty(config.circuit, edges)
  carried = edge_weights.carried(edges, model.config)
  found = find_circuit(config, model, pairs, means, ends=Ends(
      edge_weights.unit_values(carried, means['neurons']),
      edge_weights.movable(carried, model.config.d_ff)), cache=cache)
  found.report['edges'] = edges.size
  if config.circuit.selection == 'random':  # No edges end at its nodes.
    return found
  account, times = _edge_account(
      config, model, pairs, edges, own, groups, contrast, cache)
  found.report.update(
      account | circuit_summary.of_edges(edges, model.config, means, times))
  return dataclasses.replace(found, edges=edges)


def _edge_sums(config, model, pairs, cache):
  """Scores by group of facts and the groups, where pairs are resampled."""
  if not (config.circuit.resamples and config.circuit.selection != 'random'):
    return None, None
  groups = stability_lib.group_facts(
      [p.fact for p in pairs], stability_lib.GROUPS, config.seed)
  return edge_stability.answered(pairs, groups, **cache.get_or_compute(
      'edge_sums', lambda: edge_stability.sums(
          config, model, pairs, groups))), groups


def _edge_account(
    config, model, pairs, edges, own, groups, contrast, cache
) -> tuple[dict[str, Any], np.ndarray | None]:
  """How faithful the edges themselves are, and whether others give them.

  Also in which share of the resamples each is selected, [S, G].
  """
  measure = edge_attribution.faithfulness(
      config, model, pairs if own is None else own.pairs)
  report, times = {'edge_faithfulness': cache.get_or_compute_json(
      'edge_faithfulness', lambda: measure(edges.chosen))}, None
  if own is not None:
    selected = edge_stability.of_edges(
        config, model, edges, groups, own, contrast)
    report['stability'], times = stability.measure(
        config, selected, lambda row: measure.metrics(
            edge_stability.whole(row, model.config)), cache)
  return report, times


def forget_pairs(
    config: run_config.RunConfig, splits: splits_lib.Splits, tokenizer: Any
) -> list[pairs_lib.AttributionPair]:
  """The pairs of the file `--attribution_pairs_file`, or made of the questions."""
  if config.attribution.pairs_file:
    return read_file(config, tokenizer).pairs
  return pairs_lib.build_pairs(
      splits.forget_train, tokenizer,
      max_pairs=config.attribution.max_pairs, seed=config.seed,
      others=splits.retain_train, chat=config.data.chat)


def read_file(
    config: run_config.RunConfig, tokenizer: Any) -> pairs_lib.FromFile:
  """What the file `--attribution_pairs_file` holds."""
  options = config.attribution
  return pairs_lib.read_pairs(
      options.pairs_file, tokenizer, chat=config.data.chat,
      skip_unequal=options.skip_unequal)


def describe_file(
    config: run_config.RunConfig, tokenizer: Any) -> dict[str, int]:
  """`pairs_skipped` and `pairs_as_ids` of a file of pairs; the log has them."""
  if not config.attribution.pairs_file:
    return {}
  found, path = read_file(config, tokenizer), config.attribution.pairs_file
  every = found.skipped + len(found.pairs)
  if found.skipped:
    logging.warning(
        '%s: %d of %d pairs are left out (--attribution_skip_unequal): their'
        ' clean and corrupted prompts differ in token length', path,
        found.skipped, every)
  if found.as_ids and config.data.chat:
    logging.warning('%s: %d of %d pairs are token ids, which --data_chat leaves'
                    ' as they are', path, found.as_ids, every)
  return {'pairs_skipped': found.skipped, 'pairs_as_ids': found.as_ids}


def why_none(
    config: run_config.RunConfig, splits: splits_lib.Splits, tokenizer: Any
) -> str:
  """Why an audit has no forget pairs; empty where it has.

  Raises:
    ValueError: as `pairs.read_pairs`, of the file of pairs.
  """
  if not config.eval.cad_pairs:
    return '--eval_cad_pairs=0 skips CAD and AS-NC'
  if not (config.attribution.pairs_file or splits.forget_train):
    return ('there are no train questions of the forget set to make pairs of'
            ' (--data_forget), and no file of pairs (--attribution_pairs_file)')
  try:
    forget_pairs(config, splits, tokenizer)
  except pairs_lib.NoPairs as error:
    return str(error)
  return ''


def retain_pairs(
    config: run_config.RunConfig, splits: splits_lib.Splits, tokenizer: Any
) -> list[pairs_lib.AttributionPair]:
  """Pairs made of the retain questions.

  Raises:
    pairs_lib.NoPairs: there are none, or none that make pairs.
  """
  if not splits.retain_train:
    raise pairs_lib.NoPairs(
        'there are no train questions of the retain set to make pairs of'
        ' (--data_retain).')
  return pairs_lib.build_pairs(
      splits.retain_train, tokenizer,
      max_pairs=config.attribution.max_pairs or _CONTRAST_PAIRS,
      seed=config.seed, chat=config.data.chat)


def score(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair]) -> types.PyTree:
  """Mean scores of the base model over the pairs that it answers.

  Returns:
    `means` by kind of node; `places` [L, 2, P], the mean of
    those of `eap_ig.PairScores`; `answered`, a bool for each pair; and, with
    --circuit_resamples, `each`: the scores of the answered pairs.

  Raises:
    ValueError: the pairs do not elicit the knowledge.
  """
  batches = pair_batches.to_score(
      pairs, config.attribution.batch, model.config)
  scores, answered = eap_ig.keep_answered(eap_ig.score_pairs(
      model.config, model.params, batches, steps=config.attribution.steps))
  each = {'each': scores._asdict()} if config.circuit.resamples else {}
  return {'means': eap_ig.node_means(scores, model.config),
          'token_roles': scores.token_roles.mean(0), 'answered': answered, **each}


def find_circuit(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair],
    means: dict[str, np.ndarray],
    contrast: dict[str, np.ndarray] | None = None,
    each: dict[str, np.ndarray] | None = None,
    groups: dict[str, int] | None = None, *,
    ends: Ends | None = None,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> Found:
  """Selects the circuit and compares it with random ones and other pairs.

  Args:
    config: the run's.
    model: the base model.
    pairs: forget pairs that the base model answers.
    means: mean scores on them by kind of node.
    contrast: mean scores on retain pairs, for `--circuit_contrast`.
    each: the scores of each pair; None: pairs are not resampled.
    groups: of facts, to resample; None: each is one.
    ends: where a circuit of edges ends; ranked by what is carried there, and
      only where that is not 0.
    cache: the stages of a run that can go on.

  Raises:
    ValueError: no node is within the budget.
  """
  options = config.circuit
  total = tree_paths.count(model.params)

  def choose(means):
    if ends:
      return select.within(config, model.config, _touched(
          ends, options, model.config))
    return select.choose(config, model.config, means, contrast)

  ranking, attributed = choose(means)
  layers = select.layer_range(options, model.config.num_layers)
  rng = np.random.default_rng(config.seed)
  circuit, movable = attributed, ends and ends.movable
  if options.selection == 'random':
    circuit = select.matched_random(attributed, layers, rng)
    movable = ends and edge_weights.transfer(movable, attributed, circuit, rng)
  randoms = [select.matched_random(attributed, layers, rng)
             for _ in range(options.random_circuits)]
  measure = _measure(config, model, pairs)
  report = cache.get_or_compute_json('circuit', lambda: _account(
      config, measure, ranking, circuit, randoms))
  report |= {'pairs': len(pairs), 'nodes': {
      k: int(circuit[k].sum()) for k in circuit.kinds},
             'share_of_absolute_score': _share_of_score(circuit, means),
             'share_of_weights': edge_weights.num_weights(
                 circuit, movable, model.config) / total}
  logging.info(
      'circuit: %s, %.2f%% of weights, faithfulness %.2f (random %.2f)',
      report['nodes'], 100 * report['share_of_weights'],
      report['faithfulness'], report['random']['mean'])
  selected, times = None, None
  if each is not None and options.selection != 'random':
    groups = groups or stability_lib.group_facts([p.fact for p in pairs])
    selected = stability.of_nodes(
        config, model, circuit, lambda means: choose(means)[1], groups, pairs,
        eap_ig.PairScores(**each))
    report['stability'], times = stability.measure(
        config, selected, lambda row: measure.metrics(
            selected.method.place(row)), cache)
  report |= circuit_summary.of_nodes(circuit, means, times)
  return Found(circuit=circuit, ranking=ranking, means=means, report=report,
               selected=selected, movable=movable)


def _touched(ends, options, config) -> select.Ranking:
  """Ranks the nodes whose weights are at the end of an edge of the circuit."""
  costs = {kind: np.maximum(cost, 1) for kind, cost in edge_weights.costs(
      ends.movable, config).items()}
  out = select.only(select.rank(
      ends.carried, 'edge', options, config, costs), ends.carried)
  if not out.node.size:
    raise ValueError(
        f'The circuit of --circuit_edges={options.edges} stands for no weights:'
        ' none of its edges ends at a head or MLP of the layers that may'
        ' change; wanted one that does. Raise --circuit_edges, widen'
        ' --circuit_first_layer and --circuit_last_layer, or give another'
        ' --circuit_edge_selection.')
  return out


def _share_of_score(circuit, means) -> float:
  kinds = graph.acting(circuit.kinds) or circuit.kinds  # Each score once.
  chosen = sum(np.abs(means[k])[circuit[k]].sum() for k in kinds)
  return float(chosen / sum(np.abs(means[k]).sum() for k in kinds))


def _measure(config, model, pairs) -> faithfulness.Faithfulness:
  """Runs circuits on the first `--circuit_pairs` pairs."""
  batch = pair_batches.pack(
      pairs[:config.circuit.pairs], config.circuit.pairs)[0]
  return faithfulness.Faithfulness(
      model.config, model.params, jax.device_put(batch),
      config.attribution.level,
      select.layer_range(config.circuit, model.config.num_layers))


def _account(config, measure, ranking, circuit, randoms):
  """Faithfulness of the circuit, of random ones, and of prefixes."""
  values = np.array([
      measure(r) for r in progress.track(randoms, 'random circuits')])
  ranking = select.of_kinds(ranking, graph.acting(ranking.kinds))
  prefix = measure.smallest_prefix(ranking, config.circuit.faithfulness)
  return {
      'faithfulness': measure(circuit),
      'faithfulness_of_none': measure(graph.empty(measure.config)),
      'random': {
          'mean': float(values.mean()), 'max': float(values.max()),
          'circuits': len(randoms)} | select.count_same(
              sum(select.same(circuit, r) for r in randoms), len(randoms),
              'faithfulness'),
      'smallest_faithful_prefix': {
          'target': config.circuit.faithfulness, 'nodes': prefix,
          'candidates': int(ranking.node.size)},
      'level': config.attribution.level,
      'selection': config.circuit.selection,
  }


def trace_curve(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair], ranking: select.Ranking
) -> dict[str, Any]:
  """The curve of a ranking's prefixes, as `curve.trace` has it."""
  layers = select.layer_range(config.circuit, model.config.num_layers)
  rng = np.random.default_rng(config.seed)
  first = lambda size: select.prefix(ranking, size, model.config)
  return curve.trace(
      ranking.node.size, first,
      lambda size: select.matched_random(first(size), layers, rng),
      _measure(config, model, pairs), config.circuit.curve_circuits,
      select.same)
