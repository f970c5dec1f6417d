"""The circuit: which MLP neurons and attention heads may change.

Neuron j of a layer owns column j of gate and up and row j of down. A query head
owns its slices of q and o, a key/value head its slices of k and v. An edit
consists of whole units.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
from typing import Any

import numpy as np

from mansu_jax.models import config as model_config

KINDS = ('neurons', 'heads', 'kv_heads')
LEVEL_KINDS = {
    'neuron': ('neurons',),
    'head': ('heads', 'kv_heads'),
    'neuron_and_head': KINDS,
    'edge': KINDS,  # The edit changes the weights at the ends of edges.
}


def acting(kinds: Iterable[str]) -> tuple[str, ...]:
  """The kinds without key/value heads, which act through their query heads."""
  return tuple(kind for kind in kinds if kind != 'kv_heads')


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
  """Boolean membership of every node, one array per kind of node."""

  neurons: np.ndarray  # [L, F] bool
  heads: np.ndarray  # [L, N] bool
  kv_heads: np.ndarray  # [L, K] bool

  def __getitem__(self, kind: str) -> np.ndarray:
    return getattr(self, kind)

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kinds of node that the circuit holds."""
    return tuple(kind for kind in KINDS if self[kind].any())

  @property
  def span(self) -> tuple[int, int]:
    """First layer that holds a node, and one past the last; (0, 0) if none."""
    held = np.flatnonzero(
        np.any([self[kind].any(1) for kind in KINDS], axis=0))
    return (int(held[0]), int(held[-1]) + 1) if held.size else (0, 0)


def equal(
    one: Circuit, other: Circuit, kinds: Iterable[str] = KINDS) -> bool:
  """Whether two circuits hold the same nodes, of some kinds."""
  return all(np.array_equal(one[kind], other[kind]) for kind in kinds)


def equal_in_effect(one: Circuit, other: Circuit) -> bool:
  """Whether patching two circuits gives the same activations.

  Key/value heads act through their query heads, so patching does not see them.
  They own weights and enter CAD, where `equal` compares circuits instead.
  """
  return equal(one, other, acting(KINDS))


def shapes(config: model_config.ModelConfig) -> dict[str, tuple[int, int]]:
  """`{kind: (layers, nodes per layer)}` of a model."""
  return {
      'neurons': (config.num_layers, config.d_ff),
      'heads': (config.num_layers, config.num_heads),
      'kv_heads': (config.num_layers, config.num_kv_heads),
  }


def costs(config: model_config.ModelConfig) -> dict[str, int]:
  """Number of weights that one node of each kind owns."""
  head = 2 * config.d_model * config.d_head
  return {'neurons': (2 + config.gated) * config.d_model, 'heads': head,
          'kv_heads': head}


def empty(config: model_config.ModelConfig) -> Circuit:
  """A circuit without nodes."""
  return Circuit(
      **{kind: np.zeros(s, bool) for kind, s in shapes(config).items()})


def num_weights(circuit: Circuit, config: model_config.ModelConfig) -> int:
  """Number of weights that the circuit owns."""
  return sum(int(circuit[k].sum()) * c for k, c in costs(config).items())


def to_json(circuit: Circuit, scores: dict[str, np.ndarray]) -> dict[str, Any]:
  """Nodes by layer with their scores; the caller may set `edges`."""
  nodes = {}
  for kind in circuit.kinds:
    nodes[kind] = {
        str(layer): {str(j): float(scores[kind][layer, j])
                     for j in np.flatnonzero(row)}
        for layer, row in enumerate(circuit[kind]) if row.any()
    }
  return {'nodes': nodes, 'edges': None}


def from_json(
    data: dict[str, Any], config: model_config.ModelConfig) -> Circuit:
  """Reads the output of `to_json`.

  Raises:
    ValueError: a kind of node is unknown, or a node is not in the model.
  """
  circuit = empty(config)
  for kind, layers in data['nodes'].items():
    if kind not in KINDS:
      raise ValueError(f'Circuit has nodes of kind {kind!r}; wanted one of'
                       f' {", ".join(KINDS)}.')
    for layer, nodes in layers.items():
      for node in nodes:
        got, limit = (int(layer), int(node)), circuit[kind].shape
        if not all(0 <= at < most for at, most in zip(got, limit)):
          raise ValueError(
              f'Circuit names {kind} {got}, but the model has {limit[0]}'
              f' layers of {limit[1]}; wanted a circuit of this model.')
        circuit[kind][got] = True
  return circuit
