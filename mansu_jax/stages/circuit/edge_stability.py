"""How circuits of edges are scored, selected and run for `stability`.

Scores of every edge and fact would take too much memory, so scores are summed
over at most `stability.GROUPS` groups of facts, and groups are resampled.
"""

from __future__ import annotations

import numpy as np

from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import edge_selection
from mansu_jax.stages.circuit import scoring
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.circuit import stability


def score(
    settings: settings_lib.Settings, model: loading.LoadedModel,
    pairs: stability.Pairs, groups: dict[str, int]) -> stability.GroupScores:
  """Scores of all edges on the pairs that the model answers."""
  return scoring.answered_sums(pairs, groups, **scoring.edge_sums(
      settings.attribution, model, pairs, groups))


def make(
    settings: settings_lib.Settings, model: loading.LoadedModel,
    circuit: edge_circuit.EdgeCircuit, groups: dict[str, int],
    own: stability.GroupScores, contrast: np.ndarray | None = None
) -> stability.Selected:
  """A circuit of edges, with its selection and scores.

  Args:
    settings: the stage's settings.
    model: the base model.
    circuit: the circuit, selected from the scores.
    groups: group of each fact of all pairs that will be scored.
    own: the pairs that gave the circuit, with their scores.
    contrast: as for `edge_selection.select_edges`.
  """
  config, options = model.config, settings.circuit
  real = edges_lib.is_edge(config)
  unflatten = lambda row: scoring.unflatten(row, config)
  scores = unflatten(own.sums.mean())

  def make_run(pairs: stability.Pairs) -> stability.Run:
    measure = edge_selection.make_measure(settings, model, pairs)
    return lambda row: measure.metrics(unflatten(row))

  return stability.Selected(stability.Method(
      groups=groups, reference=circuit.chosen[real], make_run=make_run,
      unflatten=unflatten,
      score=lambda pairs: score(settings, model, pairs, groups),
      select=lambda means: edge_selection.select_edges(
          options, config, unflatten(means), contrast).chosen[real],
      draw=lambda rng: edge_selection.random_edges(
          options, config, scores, contrast, options.edges, rng)[real]), own)
