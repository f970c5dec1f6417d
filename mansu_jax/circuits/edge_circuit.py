"""Circuits of edges, and the files of them that others read.

Files are those of the Mechanistic Interpretability Benchmark (Mueller et al.,
2025), which are EAP-IG's: JSON with `cfg`, `nodes` and `edges`, each edge with
its score and whether it is in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from mansu_jax.circuits import edges as edges_lib
from mansu_jax.models import config as model_config

LOGITS = -1  # The owner of a target that is no node's.


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeCircuit:
  """A circuit of edges; places as in `edges`.

  Attributes:
    chosen: bool [S, G], the edges of the circuit.
    scores: float32 [S, G], of all edges.
  """

  chosen: np.ndarray
  scores: np.ndarray

  @property
  def size(self) -> int:
    return int(self.chosen.sum())


def owners(config: model_config.ModelConfig) -> np.ndarray:
  """The source that owns each target: a head its q, k and v; int [G].

  -1 of the logits.
  """
  heads = np.arange(config.num_heads)
  places = [1 + layer * (config.num_heads + 1)
            + np.array([*heads, *heads, *heads, config.num_heads])
            for layer in range(config.num_layers)]
  return np.concatenate([*places, [LOGITS]])


def nodes(
    circuit: EdgeCircuit, config: model_config.ModelConfig) -> np.ndarray:
  """The sources that have an edge in the circuit, in or out; bool [S]."""
  owner, held = owners(config), circuit.chosen.any(1)
  read = owner[circuit.chosen.any(0)]
  held[read[read != LOGITS]] = True
  return held


def named(
    circuit: EdgeCircuit, config: model_config.ModelConfig
) -> dict[str, float]:
  """The circuit's edges and their scores, for example `input->m0`."""
  sources = edges_lib.source_names(config)
  targets = edges_lib.target_names(config)
  return {f'{sources[u]}->{targets[t]}': float(circuit.scores[u, t])
          for u, t in np.argwhere(circuit.chosen)}


def to_json(
    circuit: EdgeCircuit, config: model_config.ModelConfig) -> dict[str, Any]:
  """What a circuit file of the benchmark holds; see `from_json`."""
  sources = edges_lib.source_names(config)
  targets = edges_lib.target_names(config)
  held = nodes(circuit, config)
  scored = {
      f'{sources[u]}->{targets[t]}': {
          'score': float(circuit.scores[u, t]),
          'in_graph': bool(circuit.chosen[u, t])}
      for u, t in np.argwhere(edges_lib.is_edge(config))}
  return {
      'cfg': {'n_layers': config.num_layers, 'n_heads': config.num_heads,
              'parallel_attn_mlp': False, 'd_model': config.d_model},
      'nodes': {name: {'in_graph': bool(is_held)}
                for name, is_held in zip(sources, held)} | {
                    'logits': {'in_graph': True}},
      'edges': scored}


def from_json(
    fields: Mapping[str, Any], config: model_config.ModelConfig, where: str
) -> EdgeCircuit:
  """Reads what a circuit file of the benchmark holds.

  Edges that are not named are not in the circuit and score 0.

  Args:
    fields: the file's JSON.
    config: the model that it is of.
    where: the file's name, for messages.

  Raises:
    ValueError: a key is missing, the file is of another model, or it names
      what is no edge.
  """
  missing = [key for key in ('cfg', 'edges') if key not in fields]
  if missing:
    raise ValueError(
        f'{where} lacks {missing}: wanted a circuit file with cfg, nodes and'
        ' edges. Write it with EAP-IG or the benchmark\'s tools, or'
        ' --mode=attribute.')
  wanted = {'n_layers': config.num_layers, 'n_heads': config.num_heads,
            'parallel_attn_mlp': False, 'd_model': config.d_model}
  for key, value in wanted.items():
    got = fields['cfg'].get(key, value)
    if got != value:
      raise ValueError(
          f'{where} is of a model with {key} = {got!r}, but this one has'
          f' {value!r}; wanted a circuit of this model.')
  place = {
      f'{source}->{target}': (u, t)
      for u, source in enumerate(edges_lib.source_names(config))
      for t, target in enumerate(edges_lib.target_names(config))}
  real = edges_lib.is_edge(config)
  chosen, scores = np.zeros_like(real), np.zeros(real.shape, np.float32)
  for name, edge in fields['edges'].items():
    at = place.get(name)
    if at is None or not real[at]:
      raise ValueError(
          f'{where} names {name!r}, which is no edge of this model; wanted'
          " names like 'input->a0.h0<q>', 'a0.h0->m0' and 'm0->logits'.")
    scores[at] = edge.get('score') or 0
    chosen[at] = bool(edge.get('in_graph', False))
  return EdgeCircuit(chosen, scores)
