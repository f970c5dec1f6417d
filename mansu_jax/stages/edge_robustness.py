"""How edges are scored, selected and run for `robustness`.

Scores of every edge and pair would not fit: they are summed over at most
`robustness.GROUPS` groups of facts, and those are what is resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any

import jax
import numpy as np

from mansu_jax import config as run_config
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import edge_circuit
from mansu_jax.circuits import edge_faithfulness
from mansu_jax.circuits import edge_select
from mansu_jax.circuits import edges as edges_lib
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import robustness as robustness_lib
from mansu_jax.circuits import select
from mansu_jax.stages import edge_attribution
from mansu_jax.stages import robustness


def score(
    config: run_config.RunConfig, model: Any, pairs: robustness.Pairs,
    groups: Mapping[str, int]) -> robustness.Scored:
  """EAP-IG scores of all edges, in a row, over the pairs that are answered.

  Args:
    config: the run's.
    model: the base model.
    pairs: of prompts.
    groups: of each fact.
  """
  options, real = config.attribution, edges_lib.is_edge(model.config)
  run = functools.partial(
      edges_lib.pair_scores, model.config, model.params,
      points=edges_lib.eap_ig_points(options.steps))
  order = np.argsort([len(p.clean_ids) for p in pairs], kind='stable')
  batches = pair_batches.pack(  # In order of length: less padding.
      [pairs[i] for i in order], options.batch, alone=True)
  totals = np.zeros((max(groups.values()) + 1, int(real.sum())), np.float32)
  metrics, done = np.zeros((len(pairs), 2)), 0  # Clean and corrupt.
  for found in eap_ig.of_real_pairs(run, batches):
    for edges, *both in zip(*found):
      place = order[done]
      metrics[place], done = both, done + 1
      if both[0] > 0:
        totals[groups[pairs[place].fact]] += edges[real]
  kept = np.flatnonzero(metrics[:, 0] > 0)
  answered = [pairs[i] for i in kept]
  counts = np.bincount([groups[p.fact] for p in answered],
                       minlength=len(totals))
  return robustness.Scored(
      answered, *metrics[kept].T, robustness_lib.Sums(totals, counts))


def whole(row: np.ndarray, shape: Any) -> np.ndarray:
  """From all edges in a row to sources by targets, [S, G]."""
  real = edges_lib.is_edge(shape)
  out = np.zeros(real.shape, row.dtype)
  out[real] = row
  return out


def of_edges(
    config: run_config.RunConfig, model: Any,
    circuit: edge_circuit.EdgeCircuit, groups: dict[str, int],
    own: robustness.Scored, contrast: np.ndarray | None = None
) -> robustness.Selected:
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
  alone = edge_select.given(
      shape, select.layer_range(config.circuit, shape.num_layers))

  def patch(pairs: robustness.Pairs) -> robustness.Patched:
    size = config.circuit.pairs
    (batch,) = pair_batches.pack(pairs[:size], size)
    measure = edge_faithfulness.EdgeFaithfulness(
        shape, model.params, jax.device_put(batch), alone)
    return lambda row: measure.metrics(whole(row, shape))

  return robustness.Selected(robustness.Method(
      groups=groups, reference=circuit.chosen[real], patch=patch,
      place=lambda row: whole(row, shape),
      score=lambda pairs: score(config, model, pairs, groups),
      select=lambda means: edge_attribution.select_edges(
          config, shape, whole(means, shape), contrast).chosen[real],
      draw=lambda rng: edge_select.random_like(
          circuit.chosen, shape, rng)[real]), own)
