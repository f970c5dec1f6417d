"""The flow of attribution alone: pairs -> scores -> circuit -> other pairs.

It writes `attribution.npz`, `circuit.json`, `record.json`, the report and
`flags.txt`; no model is changed and nothing is quantized. One that was stopped
starts anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import stability as stability_lib
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.report import words
from mansu_jax.report import write as report
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.runtime import sharding
from mansu_jax.runtime import workdir
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import edge_attribution
from mansu_jax.stages.circuit import edge_file
from mansu_jax.stages.circuit import edge_stability
from mansu_jax.stages.circuit import circuit_summary
from mansu_jax.stages.circuit import stability
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import checks
from mansu_jax.stages.prepare import inputs as inputs_lib


class _Scored(NamedTuple):
  """The pairs and their scores."""

  known: list[pairs_lib.AttributionPair]  # That the model answers.
  kept: eap_ig.PairScores  # Theirs.
  means: dict[str, np.ndarray]
  arrays: dict[str, np.ndarray]  # Of `attribution.npz`.
  groups: dict[str, int]  # Of each fact.
  others: dict[str, stability.Pairs]  # Other phrasings.
  of_edges: stability.Scored | None
  contrast: Any  # Mean scores on retain pairs, of nodes or edges; or None.


class _Found(NamedTuple):
  """A circuit of either kind."""

  file: dict[str, Any]  # Of `circuit.json`.
  report: dict[str, Any]
  selected: stability.Selected | None


@sharding.on_mesh
@workdir.locked
def run(config: run_config.RunConfig) -> dict[str, Any]:
  """Attributes, selects a circuit, and writes the workdir.

  Args:
    config: the run's, in attribute mode.

  Returns:
    The record, as in `record.json`.

  Raises:
    ValueError: bad input, before any long work; or pairs that do not elicit
      the knowledge.
  """
  clock = clock_lib.Clock()
  inputs = checks.read(config)
  pairs = []
  with clock.stage('load'):
    model = loading.load(
        config.model, hf_io.EXPORT_DTYPES[config.export_dtype],
        check=lambda shapes, tokenizer: pairs.extend(
            _fit(config, inputs, shapes, tokenizer)))
  root = workdir.open_workdir(
      config, inputs.hashes | {'model': model.source['sha256']})
  if config.profile:
    clock.trace_to(root / 'profile')
  with clock.stage('attribution'):
    scored = _score(config, inputs, model, pairs)
    files.write_npz(root / 'attribution.npz', scored.arrays)
  with clock.stage('circuit'):
    by_edge = config.attribution.level == 'edge'
    found = (_of_edges if by_edge else _of_nodes)(config, model, scored)
    found.report['summary']['token_roles'] = circuit_summary.by_role(scored.arrays['token_role'])
    found.report.update(attribution.describe_file(config, model.tokenizer))
  if scored.others and found.selected is not None:
    with clock.stage('other phrasings'):
      found.report['stability']['phrasings'] = stability.reworded(
          config, found.selected, scored.others)
  files.write_json(
      root / 'circuit.json', found.file | {'report': found.report})
  record = {
      'circuit': found.report,
      'metric': {'clean': float(scored.kept.metric_clean.mean()),
                 'corrupt': float(scored.kept.metric_corrupt.mean()),
                 'answered': len(scored.known), 'pairs': len(pairs)},
      'model': model.source | {'config': dataclasses.asdict(model.config)},
      'tokenization': results.describe_tokenization(
          config, model.tokenizer, inputs.splits.forget_train),
      'data': {'sha256': inputs.hashes},
      'config': dataclasses.asdict(config),
      'environment': environment.describe(), 'stages': clock.stages}
  workdir.write_flags(config, root)
  report.write(record, root)
  return record


def _fit(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, shapes: Any,
    tokenizer: Any) -> list[pairs_lib.AttributionPair]:
  """As `checks.check_attribute`; refuses a --data_chat without effect."""
  pairs = checks.check_attribute(config, inputs, shapes, tokenizer)
  path = config.attribution.pairs_file
  if config.data.chat and path and not config.circuit.contrast:
    found = attribution.read_file(config, tokenizer)
    if found.as_ids == found.skipped + len(found.pairs):
      raise ValueError(
          f'--data_chat changes nothing: all pairs of {path} are token ids'
          ' already; leave it out, or give the pairs as text.')
  return pairs


def _contrast(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, model: Any
) -> dict[str, np.ndarray] | np.ndarray | None:
  """Mean scores on retain pairs, where `--circuit_contrast` wants them."""
  if not config.circuit.contrast:
    return None
  pairs = attribution.retain_pairs(config, inputs.splits, model.tokenizer)
  scored = attribution.score(config, model, pairs)
  if config.attribution.level != 'edge':
    return scored['means']
  return edge_attribution.mean_scores(config, model, [
      pair for pair, answered in zip(pairs, scored['answered']) if answered])


def _score(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, model: Any,
    pairs: list[pairs_lib.AttributionPair]) -> _Scored:
  """Scores all pairs, and makes those of other phrasings."""
  scores = eap_ig.score_pairs(
      model.config, model.params,
      pair_batches.to_score(
          pairs, config.attribution.batch, model.config),
      steps=config.attribution.steps)
  kept, answered = eap_ig.keep_answered(scores)
  means = eap_ig.node_means(kept, model.config)
  arrays = {
      'neuron': means['neurons'], 'head': means['heads'],
      'kv_head': means['kv_heads'], 'token_role': kept.token_roles.mean(0),
      'token_role_names': np.array(eap_ig.TOKEN_ROLES), 'answered': answered,
      'metric_clean': scores.metric_clean,
      'metric_corrupt': scores.metric_corrupt}
  known = [p for p, is_kept in zip(pairs, answered) if is_kept]
  given = bool(config.circuit.file)  # Nothing is selected.
  others = {} if given else stability.phrasings(
      config, inputs.splits, model.tokenizer)
  by_edge = config.attribution.level == 'edge' and not given
  groups = stability_lib.group_facts(
      [p.fact for some in (known, *others.values()) for p in some],
      stability_lib.GROUPS if by_edge else None, config.seed)
  of_edges = None
  if by_edge:
    of_edges = edge_stability.score(config, model, known, groups)
    edges = edge_stability.whole(of_edges.sums.mean(), model.config)
    arrays |= {
        'edge': edges.astype(np.float32),
        'src_names': np.array(edges_lib.source_names(model.config)),
        'dst_names': np.array(edges_lib.target_names(model.config))}
  return _Scored(known, kept, means, arrays, groups, others, of_edges,
                 _contrast(config, inputs, model))


def _of_edges(
    config: run_config.RunConfig, model: Any, scored: _Scored) -> _Found:
  shape, report = model.config, {}
  if config.circuit.file:
    found = edge_file.measure(config, model, scored.known)
  else:
    found = edge_attribution.find(
        config, model, scored.known, scored.arrays['edge'], scored.contrast)
  selected, times = None, None
  if config.circuit.resamples and scored.of_edges is not None:
    selected = edge_stability.of_edges(
        config, model, found.circuit, scored.groups, scored.of_edges,
        scored.contrast)
    report['stability'], times = stability.measure(
        config, selected, selected.method.patch(scored.known))
  return _Found(
      edge_circuit.to_json(found.circuit, shape), found.report | report
      | circuit_summary.of_edges(found.circuit, shape, scored.means, times), selected)


def _of_nodes(
    config: run_config.RunConfig, model: Any, scored: _Scored) -> _Found:
  each = scored.kept._asdict() if config.circuit.resamples else None
  found = attribution.find_circuit(
      config, model, scored.known, scored.means, scored.contrast, each,
      scored.groups)
  found.report.update(attribution.trace_curve(
      config, model, scored.known, found.ranking))
  return _Found(graph.to_json(found.circuit, found.means), found.report,
                found.selected)


def lines(record: dict[str, Any]) -> list[str]:
  """The outcome in a few lines, for the terminal."""
  circuit, metric = record['circuit'], record['metric']
  workdir_name = record['config']['workdir']
  nodes = circuit['nodes']
  what = (f'{circuit["edges"]} of {circuit["candidates"]:,} edges, on'
          f' {nodes} nodes' if circuit['level'] == 'edge' else
          ', '.join(f'{count} {kind.replace("_", " ")}'
                    for kind, count in nodes.items()))
  random = circuit['random']
  beside = '' if random['mean'] is None else (
      f' (random circuits: mean {words.number(random["mean"], 2)}, most'
      f' {words.number(random["max"], 2)}'
      + (f', {random["same"]} of {random["circuits"]} the circuit itself'
         if random['same'] else '') + ')')
  return [
      f'attributed {metric["answered"]} of {metric["pairs"]} pairs: metric'
      f' {metric["clean"]:.2f} clean, {metric["corrupt"]:.2f} corrupted',
      f'circuit of {what}: faithfulness {circuit["faithfulness"]:.2f}{beside}',
      _curve_line(circuit),
      *_firm_lines(circuit.get('stability', {})),
      f'scores: {workdir_name}/attribution.npz',
      f'circuit: {workdir_name}/circuit.json',
      f'report: {workdir_name}/report.html']


def _curve_line(circuit: dict[str, Any]) -> str:
  if 'curve' not in circuit:
    return f'curve: none; {circuit["no_curve"]}'
  prefix = circuit['smallest_faithful_prefix']
  reached = prefix.get('edges', prefix.get('nodes'))
  smallest = 'no prefix' if reached < 0 else f'the first {reached:,}'
  return (f'curve: CPR {circuit["cpr"]:.3f}, CMD {circuit["cmd"]:.3f};'
          f' {smallest} of {prefix["candidates"]:,} reach'
          f' {prefix["target"]:g}')


def _firm_lines(found: dict[str, Any]) -> list[str]:
  """How much of the circuit other pairs give."""
  if 'halves' not in found:
    return [f'stability: not measured; {found["reason"]}'
            ] if 'reason' in found else []
  shares = [('disjoint halves of the facts', found['halves'])] + [
      (f'{use} phrasings', entry) for use, entry in found.get(
          'phrasings', {}).items() if 'kept' in entry]
  told = ', '.join(
      f'{name} {entry["kept"].get("mean", entry["kept"].get("value")):.2f}'
      for name, entry in shares)
  return [f'share of it that other pairs give: {told}; random'
          f' {found["random"]["kept"]["mean"]:.2f}']
