"""What the report draws of a circuit: sums by layer, and the largest scores.

Reports read records and never a model, and a record is no place for the scores
of every neuron: so a layer's neurons are one mark, and of edges the largest of
the circuit are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges as edges_lib

_EDGES = 150  # Drawn.
_LARGEST = 20  # Named with their scores.
_DIGITS = 4
_LETTER = {'neurons': 'm{}.n{}', 'heads': 'a{}.h{}', 'kv_heads': 'a{}.kv{}'}


def of_nodes(
    circuit: graph.Circuit, means: Mapping[str, np.ndarray], times: Any
) -> dict[str, Any]:
  """`summary` and `largest` of a circuit of nodes, JSON-able.

  Args:
    circuit: of nodes.
    means: mean scores by kind.
    times: in which share of the resamples each node is selected, by kind; None:
      not measured.

  Returns:
    `summary`: of `heads` and `kv_heads` the scores [L][nodes] and which are
    `held`; of `mlp` by layer the summed score and |score| of the circuit's
    neurons, their number, and the summed |score| of `all` neurons. `largest`:
    names, scores and shares of resamples.
  """
  held = circuit.neurons
  drawn = {'mlp': _mlp(means['neurons'], held)}
  for kind in ('heads', 'kv_heads'):
    if kind == 'heads' or circuit[kind].any():
      drawn[kind] = _heads(means[kind], circuit[kind])
  largest = [
      (_LETTER[kind].format(*node), means[kind][tuple(node)],
       None if times is None else float(times[kind][tuple(node)]))
      for kind in circuit.kinds for node in np.argwhere(circuit[kind])]
  return {'summary': drawn, 'largest': _largest(largest)}


def of_edges(
    circuit: edge_circuit.EdgeCircuit, shape: Any,
    means: Mapping[str, np.ndarray], times: np.ndarray | None
) -> dict[str, Any]:
  """The same of a circuit of edges; each MLP is a node like a head.

  `summary` has `edges`, the largest: source, target, score.

  Args:
    circuit: of edges.
    shape: the model's config.
    means: mean scores of nodes by kind.
    times: share of the resamples in which each edge is selected, [S, G].
  """
  layers, heads = shape.num_layers, shape.num_heads
  inner = edge_circuit.nodes(circuit, shape)[1:].reshape(layers, heads + 1)
  sources = edges_lib.source_names(shape)
  targets = edges_lib.target_names(shape)
  mlp = means['neurons'].sum(1, keepdims=True)  # Linear: the MLP's own score.
  rows = [
      (f'{sources[u]}->{targets[t]}', circuit.scores[u, t],
       None if times is None else float(times[u, t]))
      for u, t in np.argwhere(circuit.chosen)]
  rows.sort(key=lambda row: -abs(row[1]))
  drawn = [[*row[0].split('->'), _short(row[1])] for row in rows[:_EDGES]]
  return {'summary': {
      'mlp': _heads(mlp, inner[:, -1:]), 'edges': drawn,
      'heads': _heads(means['heads'], inner[:, :-1])},
          'largest': _largest(rows)}


def by_role(token_roles: np.ndarray) -> dict[str, Any]:
  """The picture's part about token_roles in the prompt: sums over all nodes.

  Args:
    token_roles: mean scores [L, 2, P], as in `eap_ig.PairScores`.

  Returns:
    `names` of the P token_roles; `attention` and `mlp`, [L][P].
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
  """As lists of floats of a few digits, to keep the record small."""
  if np.ndim(values):
    return [_short(v) for v in values]
  return float(f'{float(values):.{_DIGITS}g}')
