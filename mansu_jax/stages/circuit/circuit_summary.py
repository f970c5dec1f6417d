"""The figures of a circuit for the report: sums by layer, largest scores.

A report reads the record and never a model, and the scores of all neurons would
bloat a record. So the neurons of a layer are summed, and only the largest edges
of the circuit are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.models import config as model_config

_EDGES = 150  # Number of edges that the report draws.
_LARGEST = 20  # Number of nodes or edges listed with their scores.
_DIGITS = 4
_LETTER = {'neurons': 'm{}.n{}', 'heads': 'a{}.h{}', 'kv_heads': 'a{}.kv{}'}


def of_nodes(
    circuit: graph.Circuit, means: Mapping[str, np.ndarray], shares: Any
) -> dict[str, Any]:
  """`summary` and `largest` of a circuit of nodes, JSON-able.

  Args:
    circuit: the circuit.
    means: mean scores by kind.
    shares: share of the resamples that select each node, by kind; None: not
      measured.

  Returns:
    `summary`: for `heads` and `kv_heads` the scores [L][nodes] and whether the
    circuit holds them (`held`); for `mlp`, by layer, the summed score and
    |score| of the circuit's neurons, their number, and the summed |score| of
    `all` neurons. `largest`: names, scores and shares of resamples.
  """
  held = circuit.neurons
  drawn = {'mlp': _mlp(means['neurons'], held)}
  for kind in ('heads', 'kv_heads'):
    if kind == 'heads' or circuit[kind].any():
      drawn[kind] = _heads(means[kind], circuit[kind])
  largest = [
      (_LETTER[kind].format(*node), means[kind][tuple(node)],
       None if shares is None else float(shares[kind][tuple(node)]))
      for kind in circuit.kinds for node in np.argwhere(circuit[kind])]
  return {'summary': drawn, 'largest': _largest(largest)}


def of_edges(
    circuit: edge_circuit.EdgeCircuit, config: model_config.ModelConfig,
    means: Mapping[str, np.ndarray], shares: np.ndarray | None
) -> dict[str, Any]:
  """`summary` and `largest` of a circuit of edges, JSON-able.

  As from `of_nodes`, with each MLP as one node. `summary` also lists the
  largest `edges`: source, target, score.

  Args:
    circuit: the circuit.
    config: the model's config.
    means: mean scores of nodes by kind.
    shares: share of the resamples that select each edge, [S, G]; None: not
      measured.
  """
  layers, heads = config.num_layers, config.num_heads
  inner = edge_circuit.nodes(circuit, config)[1:].reshape(layers, heads + 1)
  sources = edges_lib.source_names(config)
  targets = edges_lib.target_names(config)
  # Scores are linear: the sum over neurons is the score of the MLP.
  mlp = means['neurons'].sum(1, keepdims=True)
  rows = [
      (f'{sources[u]}->{targets[t]}', circuit.scores[u, t],
       None if shares is None else float(shares[u, t]))
      for u, t in np.argwhere(circuit.chosen)]
  rows.sort(key=lambda row: -abs(row[1]))
  drawn = [[*row[0].split('->'), _short(row[1])] for row in rows[:_EDGES]]
  return {'summary': {
      'mlp': _heads(mlp, inner[:, -1:]), 'edges': drawn,
      'heads': _heads(means['heads'], inner[:, :-1])},
          'largest': _largest(rows)}


def by_role(token_roles: np.ndarray) -> dict[str, Any]:
  """Scores summed over all nodes, by role of the token in the prompt.

  Args:
    token_roles: mean scores [L, 2, P], as in `eap_ig.PairScores`.

  Returns:
    `names` of the P roles; `attention` and `mlp`, [L][P].
  """
  attention, mlp = np.moveaxis(token_roles, 1, 0)
  return {'names': list(eap_ig.TOKEN_ROLES), 'attention': _short(attention),
          'mlp': _short(mlp)}


def _mlp(scores: np.ndarray, held: np.ndarray) -> dict[str, Any]:
  inside = np.where(held, scores, 0.0)
  return {'score': _short(inside.sum(1)), 'size': _short(np.abs(inside).sum(1)),
          'neurons': held.sum(1).tolist(), 'all': _short(np.abs(scores).sum(1))}


def _heads(scores: np.ndarray, held: np.ndarray) -> dict[str, Any]:
  return {'score': _short(scores), 'held': held.astype(int).tolist()}


def _largest(rows: list[tuple[str, Any, float | None]]) -> list[dict[str, Any]]:
  best = sorted(rows, key=lambda row: -abs(row[1]))[:_LARGEST]
  return [{'name': name, 'score': float(score), 'resamples': share}
          for name, score, share in best]


def _short(values: Any) -> Any:
  """Lists of floats rounded to a few digits, to keep the record small."""
  if np.ndim(values):
    return [_short(v) for v in values]
  return float(f'{float(values):.{_DIGITS}g}')
