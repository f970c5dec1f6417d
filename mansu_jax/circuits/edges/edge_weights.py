"""The weights that a circuit of edges stands for.

An edge is read by the weights at its target and written by those at its source:

  into a head's query input   that head's slice of q
  into its key, value input   the slice of k, of v, of the head that serves it
  into an MLP                 gate and up of its neurons
  out of a head               its slice of o
  out of an MLP               down of its neurons

The embedding writes with its table and the logits read with theirs, which no
edit touches. Edges know an MLP as a whole; its neurons share what it carries in
proportion to their own scores.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.models import config as model_config


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
  """What each part of the weights carries of the circuit."""
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
  """What each unit of an edit carries, by kind; 0 where no edge touches it.

  Args:
    found: from `carried`.
    neurons: [L, F], scores of the neurons.

  Returns:
    `neurons` [L, F], `heads` [L, N], `kv_heads` [L, K].
  """
  size = np.abs(neurons)
  share = size / np.maximum(size.sum(1, keepdims=True), 1e-30)
  return {'neurons': share * (found.reads + found.writes)[:, None],
          'heads': found.q + found.o, 'kv_heads': found.k + found.v}


def movable(found: Carried, width: int) -> dict[str, np.ndarray]:
  """Which units of each leaf an edge touches, bool [L, nodes] by leaf name.

  Args:
    found: from `carried`.
    width: F, neurons a layer.
  """
  neurons = lambda x: np.repeat((x > 0)[:, None], width, axis=1)
  return {
      'layers/mlp/gate': neurons(found.reads),
      'layers/mlp/up': neurons(found.reads),
      'layers/mlp/down': neurons(found.writes),
      'layers/attn/q': found.q > 0, 'layers/attn/o': found.o > 0,
      'layers/attn/k': found.k > 0, 'layers/attn/v': found.v > 0}


def costs(
    parts: dict[str, np.ndarray], config: model_config.ModelConfig
) -> dict[str, np.ndarray]:
  """Weights of each node that may move, by kind, int [L, nodes].

  Args:
    parts: from `movable`.
    config: the model's.
  """
  out = {kind: np.zeros(shape, int)
         for kind, shape in graph.shapes(config).items()}
  for name, (kind, _) in param_mask.UNIT_AXIS.items():
    width = 1 if kind == 'neurons' else config.d_head
    out[kind] += parts[name] * config.d_model * width
  return out


def num_weights(
    circuit: graph.Circuit, parts: dict[str, np.ndarray] | None,
    config: model_config.ModelConfig) -> int:
  """Weights of a circuit that may move, of the parts from `movable`, or all."""
  if parts is None:
    return graph.num_weights(circuit, config)
  each = costs(parts, config)
  return sum(int(each[kind][circuit[kind]].sum()) for kind in graph.KINDS)


def transfer(
    parts: dict[str, np.ndarray], circuit: graph.Circuit,
    other: graph.Circuit, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """The parts of another circuit, of as many nodes of each kind and layer.

  A node of it moves in the parts of one of the circuit's, drawn at random: so
  as many weights move in each matrix and layer.

  Args:
    parts: from `movable`.
    circuit: whose parts they are.
    other: from `select.matched_random`.
    rng: of the draw.
  """
  out = {name: np.zeros_like(part) for name, part in parts.items()}
  for kind in graph.KINDS:
    names = [n for n, (k, _) in param_mask.UNIT_AXIS.items() if k == kind]
    for layer in np.flatnonzero(circuit[kind].any(1)):
      of = rng.permutation(np.flatnonzero(circuit[kind][layer]))
      to = np.flatnonzero(other[kind][layer])
      for name in names:
        out[name][layer, to] = parts[name][layer, of]
  return out
