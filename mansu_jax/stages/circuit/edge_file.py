"""Somebody else's circuit of edges, `--circuit_file`, measured on the pairs.

No score of ours has a part in it: its own rank the edges, where it has one of
every edge. It is of the whole model, and is not selected again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_select
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models import config as model_config
from mansu_jax.stages.circuit import edge_attribution


def read(
    config: run_config.RunConfig, shape: model_config.ModelConfig
) -> edge_circuit.EdgeCircuit:
  """The circuit of `--circuit_file`, with edges that lead nowhere.

  Raises:
    ValueError: as `edge_circuit.read`, or no edge lies on a path from the input
      to the logits.
  """
  path = config.circuit.file
  circuit = edge_circuit.read(path, shape)
  if not _pruned(circuit, shape).size:
    raise ValueError(
        f'--circuit_file={path} holds {circuit.size} edges that are in_graph,'
        ' and none of them lies on a path from the input to the logits; wanted'
        ' one at least. Select a circuit by its scores before it is written,'
        ' for example with apply_greedy of EAP-IG.')
  return circuit


def measure(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair]) -> edge_attribution.Found:
  """The circuit of `--circuit_file`, and how faithful it is.

  Args:
    config: the run's.
    model: the model.
    pairs: those that it answers.

  Returns:
    The circuit without edges that lead nowhere, and the account of
    `edge_attribution.find`; its curve only where every edge has a score, else
    `no_curve`, which says why.

  Raises:
    ValueError: as `read`.
  """
  options, shape = config.circuit, model.config
  given = read(config, shape)
  circuit = _pruned(given, shape)
  run = edge_attribution.faithfulness(config, model, pairs)
  rng = np.random.default_rng(config.seed)
  values = _values(circuit, rng)
  draw = lambda size: edge_attribution.random_edges(
      config, shape, values, None, size, rng)
  report = edge_attribution.account(
      config, shape, circuit, run, lambda: draw(given.size)) | {
          'selection': 'file', 'edges_before_pruning': given.size,
          'candidates': int(edges_lib.is_edge(shape).sum()),
          'pairs': len(pairs)}
  if circuit.scored is not None:
    report['no_curve'] = (
        f'{options.file} scores {int(circuit.scored.sum()):,} of'
        f' {report["candidates"]:,} edges')
  else:
    report |= _curve(options, shape, circuit, run, draw, report)
  return edge_attribution.Found(circuit, report)


def _values(circuit, rng) -> np.ndarray:
  """What random circuits permute: scores, or where some lack, membership."""
  if circuit.scored is None:
    return circuit.scores
  return circuit.chosen + 0.5 * rng.random(circuit.chosen.shape)


def _pruned(circuit, shape) -> edge_circuit.EdgeCircuit:
  return edge_select.prune(circuit, np.zeros_like(circuit.chosen), shape)


def _curve(
    options: run_config.CircuitConfig, shape: model_config.ModelConfig,
    circuit: edge_circuit.EdgeCircuit, run: Callable[[np.ndarray], float],
    draw: Callable[[int], np.ndarray], report: dict[str, Any]
) -> dict[str, Any]:
  """Curve and smallest faithful prefix of the ranking by its own |scores|."""
  real, values = edges_lib.is_edge(shape), np.abs(circuit.scores)
  if options.edge_selection == 'top':
    order = edge_select.rank_top(values, real)
  else:
    order = edge_select.rank_greedy(values, real, np.zeros_like(real), shape)
  first = lambda size: _pruned(
      edge_select.prefix(circuit.scores, order, size), shape).chosen
  return edge_attribution.by_size(
      options, order.size, first, draw, run, report['faithfulness_of_none'])
