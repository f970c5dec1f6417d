"""Pairs -> edge scores -> a circuit of edges, with its faithfulness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from mansu_jax import config as run_config
from mansu_jax import types
from mansu_jax.circuits import edge_circuit
from mansu_jax.circuits import edge_patching
from mansu_jax.circuits import edges as edges_lib
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import pair_batches
from mansu_jax.data import pairs as pairs_lib

_SELECT = {'top': edge_circuit.top, 'greedy': edge_circuit.greedy}


class Found(NamedTuple):
  """A circuit of edges."""

  circuit: edge_circuit.EdgeCircuit
  report: dict[str, Any]  # JSON-able account


def choose(
    config: run_config.RunConfig, scores: np.ndarray, shape: Any
) -> edge_circuit.EdgeCircuit:
  """Selects `--circuit_edges` edges by scores [S, G], and prunes them."""
  options = config.circuit
  return edge_circuit.prune(_SELECT[options.edge_selection](
      scores.astype(np.float32), shape, options.edges), shape)


def find(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair], scores: np.ndarray) -> Found:
  """Selects `--circuit_edges` edges and measures how faithful they are."""
  options, shape = config.circuit, model.config
  circuit = choose(config, scores, shape)
  measure = _faithfulness(config, model, pairs)
  rng = np.random.default_rng(config.seed)
  randoms = [measure(random_like(circuit.chosen, shape, rng))
             for _ in range(options.random_circuits)]
  report = {
      'level': 'edge', 'selection': options.edge_selection,
      'edges': circuit.size, 'edges_before_pruning': options.edges,
      'candidates': int(edges_lib.is_edge(shape).sum()),
      'nodes': int(edge_circuit.nodes(circuit, shape).sum()),
      'faithfulness': measure(circuit.chosen), 'pairs': len(pairs),
      'random': {'mean': float(np.mean(randoms)) if randoms else None,
                 'max': float(np.max(randoms)) if randoms else None,
                 'circuits': len(randoms)}}
  logging.info(
      'circuit: %d of %d edges, faithfulness %.2f (random %s)', circuit.size,
      report['candidates'], report['faithfulness'], report['random']['mean'])
  return Found(circuit, report)


def random_like(
    chosen: np.ndarray, config: Any, rng: np.random.Generator) -> np.ndarray:
  """As many edges into each layer and the logits, drawn at random."""
  real, out = edges_lib.is_edge(config), np.zeros_like(chosen)
  for columns in np.array_split(np.arange(real.shape[1] - 1),
                                config.num_layers) + [np.array([-1])]:
    places = np.argwhere(real[:, columns])
    count = int(chosen[:, columns].sum())
    sources, targets = rng.permutation(places)[:count].T
    out[sources, columns[targets]] = True
  return out


def _faithfulness(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair]
) -> Callable[[np.ndarray], float]:
  """`chosen edges -> (m_circuit - m_corrupt) / (m_clean - m_corrupt)`."""
  size = config.circuit.pairs
  (batch,) = pair_batches.pack(pairs[:size], size)
  batch: eap_ig.PairBatch = jax.device_put(batch)

  def metric(chosen: np.ndarray) -> float:
    values: types.Array = edge_patching.metric(
        model.config, model.params, batch, ~chosen)
    return float((values * batch.weight).sum())

  every = edges_lib.is_edge(model.config)
  clean, corrupt = metric(every), metric(np.zeros_like(every))
  return lambda chosen: (metric(chosen) - corrupt) / (clean - corrupt)
