"""The flow of attribution alone: pairs -> scores -> circuit -> other pairs.

It writes `attribution.npz`, `circuit.json`, `record.json`, the report and
`flags.txt`; no model is changed and nothing is quantized. One that was stopped
starts anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mansu_jax import config as run_config
from mansu_jax import files
from mansu_jax import workdir
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import edge_circuit
from mansu_jax.circuits import edges as edges_lib
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import robustness as robustness_lib
from mansu_jax.models import loading
from mansu_jax.report import write as report
from mansu_jax.stages import attribution
from mansu_jax.stages import checks
from mansu_jax.stages import edge_attribution
from mansu_jax.stages import edge_robustness
from mansu_jax.stages import picture
from mansu_jax.stages import results
from mansu_jax.stages import robustness


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
  clock = workdir.Clock()
  inputs = checks.read(config)
  pairs = []
  with clock.stage('load'):
    model = loading.load(config.model, check=lambda shapes, tokenizer: (
        pairs.extend(checks.fit_attribute(config, inputs, shapes, tokenizer))))
  root = workdir.open_workdir(
      config, inputs.hashes | {'model': model.source['sha256']})
  with clock.stage('attribution'):
    scores = eap_ig.score_pairs(
        model.config, model.params,
        pair_batches.pack(pairs, config.attribution.batch),
        steps=config.attribution.steps)
    kept, answered = eap_ig.keep_answered(scores)
    means = eap_ig.node_means(kept, model.config)
    arrays = {
        'neuron': means['neurons'], 'head': means['heads'],
        'kv_head': means['kv_heads'], 'answered': answered,
        'metric_clean': scores.metric_clean,
        'metric_corrupt': scores.metric_corrupt}
    known = [p for p, is_kept in zip(pairs, answered) if is_kept]
    others = robustness.phrasings(config, inputs.splits, model.tokenizer)
    by_edge = config.attribution.level == 'edge'
    groups = robustness_lib.group_facts(
        [p.fact for some in (known, *others.values()) for p in some],
        robustness_lib.GROUPS if by_edge else None, config.seed)
    if by_edge:
      own = edge_robustness.score(config, model, known, groups)
      edges = edge_robustness.whole(own.sums.mean(), model.config)
      arrays |= {
          'edge': edges.astype(np.float32),
          'src_names': np.array(edges_lib.source_names(model.config)),
          'dst_names': np.array(edges_lib.target_names(model.config))}
    files.write_npz(root / 'attribution.npz', arrays)
  with clock.stage('circuit'):
    if by_edge:
      found = edge_attribution.find(config, model, known, edges)
      selected = edge_robustness.of_edges(
          config, model, found.circuit, groups, own)
      times = None
      if config.circuit.resamples:
        found.report['robustness'], times = robustness.measure(
            config, selected, selected.method.patch(known))
      found.report.update(
          picture.of_edges(found.circuit, model.config, means, times))
    else:
      each = kept._asdict() if config.circuit.resamples else None
      found = attribution.find_circuit(
          config, model, known, means, each=each, groups=groups)
      selected = found.selected
  if others and selected is not None:
    with clock.stage('other phrasings'):
      found.report['robustness']['phrasings'] = robustness.reworded(
          config, selected, others)
  if by_edge:
    files.write_json(root / 'circuit.json', edge_circuit.to_json(
        found.circuit, model.config) | {'report': found.report})
  else:
    results.write_circuit(found, root)
  record = {
      'circuit': found.report,
      'metric': {'clean': float(kept.metric_clean.mean()),
                 'corrupt': float(kept.metric_corrupt.mean()),
                 'answered': int(answered.sum()), 'pairs': len(pairs)},
      'model': model.source | {'config': dataclasses.asdict(model.config)},
      'data': {'sha256': inputs.hashes},
      'config': dataclasses.asdict(config),
      'environment': results.environment(), 'stages': clock.stages}
  report.write(record, root)
  return record


def lines(record: dict[str, Any]) -> list[str]:
  """The outcome in a few lines, for the terminal."""
  circuit, metric = record['circuit'], record['metric']
  workdir_name = record['config']['workdir']
  nodes = circuit['nodes']
  what = (f'{circuit["edges"]} of {circuit["candidates"]:,} edges, on'
          f' {nodes} nodes' if circuit['level'] == 'edge' else
          ', '.join(f'{count} {kind}' for kind, count in nodes.items()))
  random = circuit['random']
  beside = '' if random['mean'] is None else (
      f' (random circuits: mean {random["mean"]:.2f}, most'
      f' {random["max"]:.2f})')
  return [
      f'attributed {metric["answered"]} of {metric["pairs"]} pairs: metric'
      f' {metric["clean"]:.2f} clean, {metric["corrupt"]:.2f} corrupted',
      f'circuit of {what}: faithfulness {circuit["faithfulness"]:.2f}{beside}',
      f'scores: {workdir_name}/attribution.npz',
      f'circuit: {workdir_name}/circuit.json']
