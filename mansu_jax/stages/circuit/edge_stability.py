"""How edges are scored, selected and run for `stability`.

Scores of every edge and pair would not fit: they are summed over at most
`stability.GROUPS` groups of facts, and those are what is resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mansu_jax.circuits import stability as stability_lib
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.config import run as run_config
from mansu_jax.stages.circuit import edge_attribution
from mansu_jax.stages.circuit import stability


def score(
    config: run_config.RunConfig, model: Any, pairs: stability.Pairs,
    groups: Mapping[str, int]) -> stability.Scored:
  """EAP-IG scores of all edges, in a row, over the pairs that are answered.

  Args:
    config: the run's.
    model: the base model.
    pairs: of prompts.
    groups: of each fact.
  """
  return answered(pairs, groups, **sums(config, model, pairs, groups))


def sums(
    config: run_config.RunConfig, model: Any, pairs: stability.Pairs,
    groups: Mapping[str, int]) -> dict[str, np.ndarray]:
  """What `score` takes long to compute, to keep; arguments as there.

  Returns:
    `totals` [groups, edges] float32 over the pairs that are answered, and
    `metrics` [P, 2], of each pair's clean and corrupted prompt.
  """
  real = edges_lib.is_edge(model.config)
  totals = np.zeros((max(groups.values()) + 1, int(real.sum())), np.float32)
  metrics = np.zeros((len(pairs), 2))  # Clean and corrupt.
  for place, found in edge_attribution.each_pair(config, model, pairs):
    metrics[place] = found.metric_clean, found.metric_corrupt
    if found.metric_clean > 0:
      totals[groups[pairs[place].fact]] += found.edges[real]
  return {'totals': totals, 'metrics': metrics}


def answered(
    pairs: stability.Pairs, groups: Mapping[str, int], totals: np.ndarray,
    metrics: np.ndarray) -> stability.Scored:
  """The answered of the pairs that gave `sums`, with these."""
  kept = np.flatnonzero(metrics[:, 0] > 0)
  some = [pairs[i] for i in kept]
  counts = np.bincount([groups[p.fact] for p in some], minlength=len(totals))
  return stability.Scored(
      some, *metrics[kept].T, stability_lib.Sums(totals, counts))


def whole(row: np.ndarray, shape: Any) -> np.ndarray:
  """From all edges in a row to sources by targets, [S, G]."""
  real = edges_lib.is_edge(shape)
  out = np.zeros(real.shape, row.dtype)
  out[real] = row
  return out


def of_edges(
    config: run_config.RunConfig, model: Any,
    circuit: edge_circuit.EdgeCircuit, groups: dict[str, int],
    own: stability.Scored, contrast: np.ndarray | None = None
) -> stability.Selected:
  """A circuit of edges with what gave it.

  Args:
    config: the run's.
    model: the base model.
    circuit: the reference.
    groups: of each fact of all pairs that will be scored.
    own: the pairs that gave the circuit.
    contrast: as in `edge_attribution.select_edges`.
  """
  shape = model.config
  real = edges_lib.is_edge(shape)
  scores = whole(own.sums.mean(), shape)

  def patch(pairs: stability.Pairs) -> stability.Patched:
    measure = edge_attribution.faithfulness(config, model, pairs)
    return lambda row: measure.metrics(whole(row, shape))

  return stability.Selected(stability.Method(
      groups=groups, reference=circuit.chosen[real], patch=patch,
      place=lambda row: whole(row, shape),
      score=lambda pairs: score(config, model, pairs, groups),
      select=lambda means: edge_attribution.select_edges(
          config, shape, whole(means, shape), contrast).chosen[real],
      draw=lambda rng: edge_attribution.random_edges(
          config, shape, scores, contrast, config.circuit.edges, rng)[real]
  ), own)
