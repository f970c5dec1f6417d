"""From edge scores to circuits: candidates, rankings, pruning.

With a range of layers, edges into other layers are no candidates and are never
patched (`outside_range`), as in `faithfulness`. Arrays [S, G] have sources and
targets in the order of `edges`.
"""

from __future__ import annotations

import dataclasses
import heapq
import math

import numpy as np

from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.models import config as model_config

EdgeCircuit = edge_circuit.EdgeCircuit
_LOGITS = edge_circuit.LOGITS


def into_layers(
    config: model_config.ModelConfig, layers: range) -> np.ndarray:
  """The edges into the heads and MLPs of a range of layers, bool [S, G]."""
  per_layer = 3 * config.num_heads + 1
  out = edges_lib.is_edge(config)
  out[:, :layers.start * per_layer] = False
  out[:, layers.stop * per_layer:] = False
  return out


def outside_range(
    config: model_config.ModelConfig, layers: range) -> np.ndarray:
  """The edges into layers outside a range, never patched, bool [S, G]."""
  out = edges_lib.is_edge(config) & ~into_layers(config, layers)
  out[:, -1] = False  # Edges into the logits are always candidates.
  return out


def candidates(
    values: np.ndarray, config: model_config.ModelConfig, layers: range,
    cap: float) -> np.ndarray:
  """The edges that a circuit may hold, bool [S, G].

  Args:
    values: values of edges, [S, G]; the largest matter most.
    config: the model's config.
    layers: layers whose heads and MLPs edges may end at; edges into the logits
      are candidates too.
    cap: largest share of the edges into each layer, which keeps those of the
      largest values, but at least one. Edges into the logits are not capped.

  Raises:
    ValueError: the values have the shape of another model.
  """
  out = edges_lib.is_edge(config)
  if values.shape != out.shape:
    raise ValueError(
        f'The scores have shape {values.shape}; wanted {out.shape}, sources by'
        ' targets of this model.')
  out[:, :-1] = False
  for layer in layers:
    into = np.flatnonzero(into_layers(config, range(layer, layer + 1)))
    best = np.argsort(-values.flat[into], kind='stable')
    out.flat[into[best[:_within(cap, into.size)]]] = True
  return out


def num_candidates(
    config: model_config.ModelConfig, layers: range, cap: float) -> int:
  """The number of `candidates`, for any values."""
  into = [int(into_layers(config, range(layer, layer + 1)).sum())
          for layer in layers]
  return int(edges_lib.is_edge(config)[:, -1].sum()) + sum(
      _within(cap, count) for count in into)


def _within(cap: float, count: int) -> int:
  return max(1, math.floor(cap * count))


def rank_top(values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
  """Edges by value, the largest first.

  Args:
    values: [S, G].
    allowed: edges to rank, bool [S, G].

  Returns:
    Positions of the edges in the flattened [S, G], int.
  """
  found = np.flatnonzero(allowed)
  return found[np.argsort(-values.flat[found], kind='stable')]


def rank_greedy(
    values: np.ndarray, allowed: np.ndarray, never_patched: np.ndarray,
    config: model_config.ModelConfig, most: int | None = None) -> np.ndarray:
  """Edges from the logits down, so that every edge of a prefix leads there.

  The next edge is the one of largest value into a node reached so far.

  Args:
    values: [S, G].
    allowed: edges to rank, bool [S, G].
    never_patched: edges of every circuit, from `outside_range`, bool [S, G].
    config: the model's config.
    most: largest number of edges to rank; None: all.

  Returns:
    As `rank_top`, without edges that do not lead to the logits.
  """
  owner = edge_circuit.owners(config)
  reads = {node: np.flatnonzero(owner == node) for node in set(owner.tolist())}
  order, reached, heap = [], set(), []

  def reach(node):
    waiting = [node]
    while waiting:
      node = waiting.pop()
      if node in reached:
        continue
      reached.add(node)
      for target in reads.get(node, ()):
        waiting += np.flatnonzero(never_patched[:, target]).tolist()
        for source in np.flatnonzero(allowed[:, target]):
          heapq.heappush(heap, (-float(values[source, target]), int(source),
                                int(target)))

  reach(_LOGITS)
  while heap and len(order) != most:
    _, source, target = heapq.heappop(heap)
    order.append(source * owner.size + target)
    reach(source)
  return np.array(order, int)


def prefix(scores: np.ndarray, order: np.ndarray, size: int) -> EdgeCircuit:
  """The circuit of the first `size` edges of a ranking."""
  chosen = np.zeros(scores.shape, bool)
  chosen.flat[order[:size]] = True
  return EdgeCircuit(chosen, scores)


def prune(
    circuit: EdgeCircuit, never_patched: np.ndarray,
    config: model_config.ModelConfig) -> EdgeCircuit:
  """Drops edges that do not lie on a path from the input to the logits.

  Args:
    circuit: the circuit.
    never_patched: edges of every circuit, from `outside_range`, bool [S, G];
      a path may use them.
    config: the model's config.
  """
  owner, held = edge_circuit.owners(config), circuit.chosen | never_patched
  into = owner != _LOGITS
  while True:
    fed = np.zeros(len(held), bool)
    np.logical_or.at(fed, owner[into], held[:, into].any(0))
    fed[0] = True  # The input.
    kept = fed & held.any(1)
    less = held & kept[:, None] & np.where(into, kept[owner], True)
    if (less == held).all():
      return dataclasses.replace(circuit, chosen=circuit.chosen & less)
    held = less


def permute(
    values: np.ndarray, config: model_config.ModelConfig,
    rng: np.random.Generator) -> np.ndarray:
  """Values [S, G] permuted among the edges into each layer, and the logits.

  Selecting by them gives random circuits that are connected in the same way.
  """
  out = values.copy()
  layers = [into_layers(config, range(layer, layer + 1))
            for layer in range(config.num_layers)]
  logits = edges_lib.is_edge(config) & ~np.any(layers, axis=0)
  for part in (*layers, logits):
    out[part] = rng.permutation(values[part])
  return out
