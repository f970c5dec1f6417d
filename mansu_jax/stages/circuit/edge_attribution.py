"""Edge scores -> a circuit of edges, with its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import logging
import numpy as np

from mansu_jax.circuits import curve
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.config import circuit as circuit_config
from mansu_jax.models import config as model_config
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import circuit_report
from mansu_jax.stages.circuit import circuit_summary
from mansu_jax.stages.circuit import edge_selection
from mansu_jax.stages.circuit import edge_stability
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.circuit import stability


def find(
    settings: settings_lib.Settings, model: loading.LoadedModel,
    scored: outputs.Scored) -> outputs.Found:
  """Selects `--circuit_edges` edges; measures faithfulness and stability.

  Args:
    settings: the stage's settings.
    model: the model.
    scored: the pairs and their scores.

  Raises:
    ValueError: the circuit is empty, or as `faithfulness.spread`.
  """
  options, config, own = settings.circuit, model.config, scored.edges.sums
  scores = scored.edges.means.astype(np.float32)  # As in attribution.npz.
  circuit, report = select_and_describe(
      settings, model, scored.pairs, scores, scored.contrast)
  selected, shares = None, None
  if options.resamples and own is not None:
    selected = edge_stability.make(
        settings, model, circuit, scored.groups, own, scored.contrast)
    report['stability'], shares = stability.measure(
        settings, selected, selected.method.make_run(own.pairs))
  report |= circuit_summary.of_edges(circuit, config, scored.means, shares)
  return outputs.Found(
      circuit=None, ranking=None, means=scored.means, report=report,
      selected=selected, edges=circuit)


def select_and_describe(
    settings: settings_lib.Settings, model: loading.LoadedModel,
    pairs: stability.Pairs, scores: np.ndarray,
    contrast: np.ndarray | None = None
) -> tuple[edge_circuit.EdgeCircuit, dict[str, Any]]:
  """The circuit of `--circuit_edges` edges and its faithfulness by size.

  Args:
    settings: the stage's settings.
    model: the model.
    pairs: the pairs that it answers.
    scores: mean scores on the pairs, [S, G].
    contrast: mean scores on retain pairs, for `--circuit_contrast`.

  Raises:
    ValueError: the circuit is empty, or as `faithfulness.spread`.
  """
  options, config = settings.circuit, model.config
  order, first = edge_selection.rank(
      options, config, scores,
      select.contrasted(scores, contrast, options.contrast))
  circuit = first(options.edges)
  edge_selection.check_not_empty(options, circuit)
  rng = np.random.default_rng(settings.seed)
  prefixes = curve.Prefixes(
      unit='edges', count=int(order.size),
      first=lambda size: first(size).chosen,
      draw=lambda size: edge_selection.random_edges(
          options, config, scores, contrast, size, rng),
      same=np.array_equal)
  measure = edge_selection.make_measure(settings, model, pairs)
  report = describe(config, circuit, measure, [
      prefixes.draw(options.edges) for _ in range(options.random_circuits)]) | {
          'selection': options.edge_selection,
          'edges_before_pruning': min(options.edges, prefixes.count),
          'candidates': prefixes.count, 'pairs': len(pairs)}
  return circuit, report | describe_by_size(options, prefixes, measure, report)


def describe(
    config: model_config.ModelConfig, circuit: edge_circuit.EdgeCircuit,
    measure: faithfulness.Faithfulness[np.ndarray],
    randoms: Sequence[np.ndarray]) -> dict[str, Any]:
  """The size and faithfulness of a circuit of edges.

  Args:
    config: the model's config.
    circuit: the circuit.
    measure: measures circuits of edges.
    randoms: random circuits, each bool [S, G].
  """
  report = {
      'level': 'edge', 'edges': circuit.size,
      'nodes': int(edge_circuit.nodes(circuit, config).sum())
  } | circuit_report.compare(
      measure, circuit.chosen, empty=np.zeros_like(circuit.chosen),
      randoms=randoms, same=np.array_equal)
  logging.info(
      'circuit: %d edges, faithfulness %.2f (random %.2f)', circuit.size,
      report['faithfulness'], report['random']['mean'])
  return report


def describe_by_size(
    options: circuit_config.CircuitConfig,
    prefixes: curve.Prefixes[np.ndarray],
    measure: faithfulness.Faithfulness[np.ndarray], report: dict[str, Any]
) -> dict[str, Any]:
  """The curve of a ranking, and its smallest faithful prefix.

  Args:
    options: target of faithfulness and number of random circuits.
    prefixes: the circuits by size.
    measure: measures circuits of edges.
    report: report on the circuit; holds the faithfulness of no edge.
  """
  found = circuit_report.trace(options, prefixes, measure)
  start = {'size': 0, 'faithfulness': report['faithfulness_of_none']}
  return found | circuit_report.smallest_prefix(
      options, prefixes, measure, [start, *found['curve']])
