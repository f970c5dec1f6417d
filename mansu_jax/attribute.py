"""The flow of attribution alone: pairs -> scores -> circuit.

It writes `attribution.npz`, `circuit.json`, `record.json` and `flags.txt`; no
model is changed and nothing is quantized. One that was stopped starts anew.
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
from mansu_jax.models import loading
from mansu_jax.stages import attribution
from mansu_jax.stages import checks
from mansu_jax.stages import edge_attribution
from mansu_jax.stages import inputs as inputs_lib
from mansu_jax.stages import results


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
    contrast = _contrast(config, inputs, model)
    if config.attribution.level == 'edge':
      edges = edge_attribution.mean_scores(config, model, known)
      arrays |= {
          'edge': edges.astype(np.float32),
          'src_names': np.array(edges_lib.source_names(model.config)),
          'dst_names': np.array(edges_lib.target_names(model.config))}
    files.write_npz(root / 'attribution.npz', arrays)
  with clock.stage('circuit'):
    if config.attribution.level == 'edge':
      found = edge_attribution.find(config, model, known, edges, contrast)
      files.write_json(root / 'circuit.json', edge_circuit.to_json(
          found.circuit, model.config) | {'report': found.report})
    else:
      found = attribution.find_circuit(config, model, known, means, contrast)
      found.report.update(attribution.trace_curve(
          config, model, known, found.ranking))
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
  files.write_json(root / 'record.json', record)
  return record


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
  prefix = circuit['smallest_faithful_prefix']
  reached = prefix.get('edges', prefix.get('nodes'))
  smallest = 'no prefix' if reached < 0 else f'the first {reached:,}'
  return [
      f'attributed {metric["answered"]} of {metric["pairs"]} pairs: metric'
      f' {metric["clean"]:.2f} clean, {metric["corrupt"]:.2f} corrupted',
      f'circuit of {what}: faithfulness {circuit["faithfulness"]:.2f}{beside}',
      f'curve: CPR {circuit["cpr"]:.3f}, CMD {circuit["cmd"]:.3f};'
      f' {smallest} of {prefix["candidates"]:,} reach {prefix["target"]:g}',
      f'scores: {workdir_name}/attribution.npz',
      f'circuit: {workdir_name}/circuit.json']
