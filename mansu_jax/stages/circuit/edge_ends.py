"""A circuit of edges -> the weights at their ends, which an edit may change."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_weights
from mansu_jax.config import circuit as circuit_config
from mansu_jax.models import config as model_config
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.circuit import circuit_summary
from mansu_jax.stages.circuit import edge_selection
from mansu_jax.stages.circuit import edge_stability
from mansu_jax.stages.circuit import node_circuit
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.circuit import stability

Settings = settings_lib.Settings


def find(
    settings: Settings, model: loading.LoadedModel, scored: outputs.Scored,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> outputs.Found:
  """Selects edges, and the nodes whose weights are at their ends.

  Args:
    settings: the stage's settings.
    model: the base model.
    scored: the pairs and their scores.
    cache: cache of finished stages.

  Raises:
    ValueError: the circuit has no edge, its edges end at no weights that may
      change, or no node is within the budget.
  """
  options, config = settings.circuit, model.config
  edges = edge_selection.select_edges(
      options, config, scored.edges.means, scored.contrast)
  edge_selection.check_not_empty(options, edges)
  carried = edge_weights.carried(edges, config)
  movable = edge_weights.movable(carried, config)
  values = edge_weights.unit_values(carried, scored.means['neurons'])
  found = node_circuit.make(
      settings, model, dataclasses.replace(scored, each=None),
      lambda means: _choose(options, config, values, movable), movable,
      cache=cache)
  found.report['edges'] = edges.size
  if options.selection == 'random':  # Its nodes are no ends of these edges.
    return found
  report, shares = _describe_edges(settings, model, scored, edges, cache)
  found.report.update(report | circuit_summary.of_edges(
      edges, config, scored.means, shares))
  return dataclasses.replace(found, edges=edges)


def _choose(
    options: circuit_config.CircuitConfig, config: model_config.ModelConfig,
    values: dict[str, np.ndarray], movable: dict[str, np.ndarray]
) -> tuple[select.Ranking, graph.Circuit]:
  """Ranks the nodes at the ends of edges; selects those within the budget."""
  costs = {kind: np.maximum(cost, 1)
           for kind, cost in edge_weights.costs(movable, config).items()}
  ranking = select.nonzero(
      select.rank(values, 'edge', options, config, costs), values)
  if not ranking.node.size:
    raise ValueError(
        f'No edge selected by --circuit_edges={options.edges} starts or ends at'
        ' a head or MLP of the layers that may change, so no weight may change;'
        ' wanted at least one such edge. Raise --circuit_edges, widen'
        ' --circuit_first_layer and --circuit_last_layer, or give another'
        ' --circuit_edge_selection.')
  return ranking, select.within_budget(ranking, options.budget, config)


def _describe_edges(
    settings: Settings, model: loading.LoadedModel, scored: outputs.Scored,
    edges: edge_circuit.EdgeCircuit, cache: checkpoints.NoCache
) -> tuple[dict[str, Any], np.ndarray | None]:
  """Faithfulness and stability of the edges themselves.

  Returns:
    The report, and the share of resamples that select each edge, [S, G].
  """
  own = scored.edges.sums
  measure = edge_selection.make_measure(
      settings, model, scored.pairs if own is None else own.pairs)
  report = {'edge_faithfulness': cache.get_or_compute_json(
      'edge_faithfulness', lambda: measure(edges.chosen))}
  if own is None:
    return report, None
  selected = edge_stability.make(
      settings, model, edges, scored.groups, own, scored.contrast)
  run = lambda row: measure.metrics(selected.method.unflatten(row))
  report['stability'], shares = stability.measure(
      settings, selected, run, cache)
  return report, shares
