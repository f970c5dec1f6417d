"""Measures a circuit of edges from a file, `--circuit_file`, on the pairs.

Our scores play no part: the file's own scores rank the edges, if it has one for
every edge. The circuit may use all layers of the model, and is not selected
again from other pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mansu_jax.circuits import curve
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_select
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.config import circuit as circuit_config
from mansu_jax.models import config as model_config
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import circuit_summary
from mansu_jax.stages.circuit import edge_attribution
from mansu_jax.stages.circuit import edge_selection
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib


def read(
    path: str, config: model_config.ModelConfig) -> edge_circuit.EdgeCircuit:
  """Reads `--circuit_file`, without pruning it.

  Args:
    path: the file.
    config: the model's config.

  Raises:
    ValueError: as `edge_circuit.read`, or no edge lies on a path from the input
      to the logits.
  """
  circuit = edge_circuit.read(path, config)
  if not _prune(circuit, config).size:
    raise ValueError(
        f'--circuit_file={path} holds {circuit.size} edges that are in_graph,'
        ' but none lies on a path from the input to the logits; wanted at least'
        ' one. Select a circuit by its scores before writing it, for example'
        ' with apply_greedy of EAP-IG.')
  return circuit


def find(
    settings: settings_lib.Settings, model: loading.LoadedModel,
    scored: outputs.Scored) -> outputs.Found:
  """The circuit of `--circuit_file`, pruned, with its report.

  Args:
    settings: the stage's settings.
    model: the model.
    scored: the pairs that the model answers.

  Returns:
    The circuit with the report of `edge_attribution.find`. If an edge has no
    score, `no_curve` gives the reason instead of the curve.

  Raises:
    ValueError: as `read`.
  """
  options, config = settings.circuit, model.config
  given = read(options.file, config)
  circuit = _prune(given, config)
  measure = edge_selection.make_measure(settings, model, scored.pairs)
  rng = np.random.default_rng(settings.seed)
  values = _values(circuit, rng)
  draw = lambda size: edge_selection.random_edges(
      options, config, values, None, size, rng)
  report = edge_attribution.describe(config, circuit, measure, [
      draw(given.size) for _ in range(options.random_circuits)]) | {
          'selection': 'file', 'edges_before_pruning': given.size,
          'candidates': int(edges_lib.is_edge(config).sum()),
          'pairs': len(scored.pairs)}
  if circuit.scored is not None:
    report['no_curve'] = (
        f'{options.file} scores {int(circuit.scored.sum()):,} of'
        f' {report["candidates"]:,} edges')
  else:
    report |= edge_attribution.describe_by_size(
        options, _prefixes(options, config, circuit, draw), measure, report)
  report |= circuit_summary.of_edges(circuit, config, scored.means, None)
  return outputs.Found(
      circuit=None, ranking=None, means=scored.means, report=report,
      edges=circuit)


def _values(
    circuit: edge_circuit.EdgeCircuit, rng: np.random.Generator) -> np.ndarray:
  """Values that random circuits permute: scores, or else membership."""
  if circuit.scored is None:
    return circuit.scores
  return circuit.chosen + 0.5 * rng.random(circuit.chosen.shape)


def _prune(
    circuit: edge_circuit.EdgeCircuit, config: model_config.ModelConfig
) -> edge_circuit.EdgeCircuit:
  return edge_select.prune(circuit, np.zeros_like(circuit.chosen), config)


def _prefixes(
    options: circuit_config.CircuitConfig, config: model_config.ModelConfig,
    circuit: edge_circuit.EdgeCircuit, draw: Callable[[int], np.ndarray]
) -> curve.Prefixes[np.ndarray]:
  """The circuits of the ranking by the file's own |scores|."""
  real, values = edges_lib.is_edge(config), np.abs(circuit.scores)
  if options.edge_selection == 'top':
    order = edge_select.rank_top(values, real)
  else:
    order = edge_select.rank_greedy(values, real, np.zeros_like(real), config)
  first = lambda size: _prune(
      edge_select.prefix(circuit.scores, order, size), config).chosen
  return curve.Prefixes(
      unit='edges', count=int(order.size), first=first, draw=draw,
      same=np.array_equal)
