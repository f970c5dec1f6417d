"""The weights at the ends of a circuit's edges.

The weights at an edge's source write it, and those at its target read it:

  into a head's query input   that head's slice of q
  into its key, value input   the slice of k, of v, of the head that serves it
  into an MLP                 gate and up of its neurons
  out of a head               its slice of o
  out of an MLP               down of its neurons

The tables of the embedding and of the logits are never edited. An MLP is one
node; its score is divided among its neurons in proportion to their own scores.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.models import config as model_config
from mansu_jax.models import layout


class Carried(NamedTuple):
  """Summed |score| of a circuit's edges at each part of the weights."""

  q: np.ndarray  # [L, N]
  k: np.ndarray  # [L, K]
  v: np.ndarray  # [L, K]
  o: np.ndarray  # [L, N]
  reads: np.ndarray  # [L], gate and up
  writes: np.ndarray  # [L], down


def carried(
    circuit: edge_circuit.EdgeCircuit, config: model_config.ModelConfig
) -> Carried:
  """Sums the |scores| of the circuit's edges by part of the weights."""
  size = np.abs(circuit.scores) * circuit.chosen  # [S, G]
  count, heads = config.num_layers, config.num_heads
  out = size[1:].sum(1).reshape(count, heads + 1)
  into = size[:, :-1].sum(0).reshape(count, 3 * heads + 1)
  q, k, v = np.split(into[:, :-1], 3, axis=1)
  grouped = lambda x: x.reshape(count, config.num_kv_heads, -1).sum(-1)
  return Carried(q, grouped(k), grouped(v), out[:, :-1], into[:, -1],
                 out[:, -1])


def unit_values(
    found: Carried, neurons: np.ndarray) -> dict[str, np.ndarray]:
  """Summed |score| at each unit, by kind; 0 if no edge ends there.

  Args:
    found: from `carried`.
    neurons: scores of the neurons, [L, F].

  Returns:
    `neurons` [L, F], `heads` [L, N], `kv_heads` [L, K].
  """
  size = np.abs(neurons)
  share = size / np.maximum(size.sum(1, keepdims=True), 1e-30)
  return {'neurons': share * (found.reads + found.writes)[:, None],
          'heads': found.q + found.o, 'kv_heads': found.k + found.v}


def movable(
    found: Carried, config: model_config.ModelConfig) -> dict[str, np.ndarray]:
  """Units of each leaf at the end of an edge, bool [L, nodes] by leaf name.

  Args:
    found: from `carried`.
    config: the model's config.
  """
  neurons = lambda x: np.repeat((x > 0)[:, None], config.d_ff, axis=1)
  gate = {'layers/mlp/gate': neurons(found.reads)} if config.gated else {}
  return gate | {
      'layers/mlp/up': neurons(found.reads),
      'layers/mlp/down': neurons(found.writes),
      'layers/attn/q': found.q > 0, 'layers/attn/o': found.o > 0,
      'layers/attn/k': found.k > 0, 'layers/attn/v': found.v > 0}


def costs(
    parts: dict[str, np.ndarray], config: model_config.ModelConfig
) -> dict[str, np.ndarray]:
  """Number of each node's weights that may change, by kind, int [L, nodes].

  Args:
    parts: from `movable`.
    config: the model's config.
  """
  out = {kind: np.zeros(shape, int)
         for kind, shape in graph.shapes(config).items()}
  for name in parts:
    kind, _ = layout.UNIT_AXIS[name]
    width = 1 if kind == 'neurons' else config.d_head
    out[kind] += parts[name] * config.d_model * width
  return out


def num_weights(
    circuit: graph.Circuit, parts: dict[str, np.ndarray] | None,
    config: model_config.ModelConfig) -> int:
  """Number of a circuit's weights that may change.

  Args:
    circuit: the circuit.
    parts: from `movable`; None: all weights of the circuit.
    config: the model's config.
  """
  if parts is None:
    return graph.num_weights(circuit, config)
  each = costs(parts, config)
  return sum(int(each[kind][circuit[kind]].sum()) for kind in graph.KINDS)


def transfer(
    parts: dict[str, np.ndarray], circuit: graph.Circuit,
    other: graph.Circuit, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Movable parts for a random circuit that match the parts of a circuit.

  Each node of the random circuit takes the parts of a random node of the
  circuit, so equally many weights may change in each matrix and layer.

  Args:
    parts: parts of the circuit, from `movable`.
    circuit: the circuit.
    other: the random circuit, from `select.matched_random`.
    rng: generator of the draw.
  """
  out = {name: np.zeros_like(part) for name, part in parts.items()}
  for kind in graph.KINDS:
    names = [n for n in parts if layout.UNIT_AXIS[n][0] == kind]
    for layer in np.flatnonzero(circuit[kind].any(1)):
      of = rng.permutation(np.flatnonzero(circuit[kind][layer]))
      to = np.flatnonzero(other[kind][layer])
      for name in names:
        out[name][layer, to] = parts[name][layer, of]
  return out
