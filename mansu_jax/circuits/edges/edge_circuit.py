"""Circuits of edges, and their files.

Files have the format of EAP-IG and of the Mechanistic Interpretability
Benchmark (Mueller et al., 2025): JSON with `cfg`, `nodes` and `edges`, where
each edge has a score and says whether it is in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import json
from typing import Any

import numpy as np

from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.data.readers import jsonl
from mansu_jax.models import config as model_config

LOGITS = -1  # Stands for the owner of the logits, which no node owns.
_REMEDY = ("Write it with EAP-IG or the benchmark's tools, or with"
           ' --mode=attribute.')


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeCircuit:
  """A circuit of edges; sources and targets are ordered as in `edges`.

  Attributes:
    chosen: edges of the circuit, bool [S, G].
    scores: scores of all edges, float32 [S, G].
    scored: edges that have a score, bool [S, G]; None: all.
  """

  chosen: np.ndarray
  scores: np.ndarray
  scored: np.ndarray | None = None

  @property
  def size(self) -> int:
    """The number of edges."""
    return int(self.chosen.sum())


def owners(config: model_config.ModelConfig) -> np.ndarray:
  """The source that owns each target, int [G]; `LOGITS` for the logits.

  A head owns its query, key and value inputs, an MLP its input.
  """
  heads = np.arange(config.num_heads)
  targets = [1 + layer * (config.num_heads + 1)
             + np.array([*heads, *heads, *heads, config.num_heads])
             for layer in range(config.num_layers)]
  return np.concatenate([*targets, [LOGITS]])


def nodes(
    circuit: EdgeCircuit, config: model_config.ModelConfig) -> np.ndarray:
  """The sources with an edge of the circuit, in or out; bool [S]."""
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
  """The contents of a circuit file of the benchmark; see `from_json`.

  Other readers of the format need a score for every edge, so edges without a
  score get 0 and are listed under `unscored`, which only `from_json` reads.
  """
  sources = edges_lib.source_names(config)
  targets = edges_lib.target_names(config)
  held, real = nodes(circuit, config), edges_lib.is_edge(config)
  name = lambda u, t: f'{sources[u]}->{targets[t]}'
  unscored = {} if circuit.scored is None else {'unscored': [
      name(u, t) for u, t in np.argwhere(real & ~circuit.scored)]}
  return {
      'cfg': _cfg(config),
      'nodes': {name: {'in_graph': bool(is_held)}
                for name, is_held in zip(sources, held)} | {
                    'logits': {'in_graph': True}},
      'edges': {name(u, t): {'score': float(circuit.scores[u, t]),
                             'in_graph': bool(circuit.chosen[u, t])}
                for u, t in np.argwhere(real)}} | unscored


def _cfg(config: model_config.ModelConfig) -> dict[str, Any]:
  return {'n_layers': config.num_layers, 'n_heads': config.num_heads,
          'parallel_attn_mlp': config.parallel, 'd_model': config.d_model}


def read(path: str, config: model_config.ModelConfig) -> EdgeCircuit:
  """Reads a circuit file of the benchmark.

  Args:
    path: the file.
    config: config of the circuit's model.

  Raises:
    ValueError: there is no such file, it is not JSON, or as `from_json`.
  """
  text = jsonl.read_text(path)
  try:
    fields = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(
        f'{path} is not JSON ({error}); wanted a circuit file. {_REMEDY}'
    ) from error
  return from_json(fields, config, path)


def from_json(
    fields: Any, config: model_config.ModelConfig, where: str) -> EdgeCircuit:
  """Reads the contents of a circuit file of the benchmark.

  Edges that the file does not list are outside the circuit and have no score.
  Edges listed under `unscored` have no score either.

  Args:
    fields: the file's JSON.
    config: config of the circuit's model.
    where: name of the file, for messages.

  Raises:
    ValueError: a key is missing or has the wrong type, the file is of another
      model, a node or edge does not exist, or a node is split into neurons.
  """
  _check_object(where, 'the whole file', fields)
  if 'cfg' not in fields and fields.get('edges', fields) is None:
    raise ValueError(
        f'{where} is a circuit of nodes; wanted a circuit of edges, as'
        ' --attribution_level=edge writes it.')
  missing = [key for key in ('cfg', 'edges') if key not in fields]
  if missing:
    raise ValueError(
        f'{where} lacks {missing}; wanted a circuit file with cfg, nodes and'
        f' edges. {_REMEDY}')
  _check_object(where, "'cfg'", fields['cfg'])
  for key, value in _cfg(config).items():
    got = fields['cfg'].get(key, value)
    # Former versions wrote false here for parallel models as well.
    if got != value and not (key == 'parallel_attn_mlp' and got is False):
      raise ValueError(
          f'{where} is of a model with {key} = {got!r}, but this one has'
          f' {value!r}; wanted a circuit of this model. {_REMEDY}')
  _check_nodes(fields.get('nodes', {}), config, where)
  real = edges_lib.is_edge(config)
  chosen, scored = np.zeros_like(real), np.zeros_like(real)
  scores = np.zeros(real.shape, np.float32)
  unscored = fields.get('unscored', [])
  if not isinstance(unscored, list):
    raise ValueError(
        f"{where}: 'unscored' is {_short(unscored)}; wanted a list of names of"
        f' edges. {_REMEDY}')
  unscored = set(map(str, unscored))
  for name, at, edge in _edges(fields['edges'], config, where):
    chosen[at], score = edge.get('in_graph', False), edge.get('score')
    if score is not None and name not in unscored:
      scores[at], scored[at] = score, True
  return EdgeCircuit(
      chosen, scores, None if scored[real].all() else scored)


def _check_object(where: str, name: str, value: Any) -> None:
  if not isinstance(value, dict):
    raise ValueError(
        f'{where}: {name} is {_short(value)}; wanted an object with named'
        f' fields. {_REMEDY}')


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 40 else f'{text[:40]}...'


def _check_in_graph(where: str, name: str, fields: dict[str, Any]) -> None:
  held = fields.get('in_graph', False)
  if not isinstance(held, bool):
    raise ValueError(
        f"{where}: 'in_graph' of {name!r} is {_short(held)}; wanted true or"
        f' false. {_REMEDY}')


def _check_nodes(
    found: Any, config: model_config.ModelConfig, where: str) -> None:
  """Raises ValueError on nodes that do not exist or are split."""
  _check_object(where, "'nodes'", found)
  known = {*edges_lib.source_names(config), 'logits'}
  for name, node in found.items():
    if name not in known:
      raise ValueError(
          f'{where} names {name!r}, which is not a node of this model; wanted'
          f" names like 'input', 'a0.h0', 'm0' and 'logits'. {_REMEDY}")
    if isinstance(node, bool):  # EAP-IG documents bools but writes objects.
      continue
    _check_object(where, f'node {name!r}', node)
    _check_in_graph(where, name, node)
    if 'neurons' in node:
      raise ValueError(
          f"{where}: node {name!r} has 'neurons', a part of the node; wanted"
          ' whole nodes, since edges between parts of nodes are not supported.'
          ' Write the circuit without neurons.')


def _edges(
    found: Any, config: model_config.ModelConfig, where: str
) -> Iterator[tuple[str, tuple[int, int], dict[str, Any]]]:
  """Yields name, position and fields of each edge; checks them."""
  _check_object(where, "'edges'", found)
  positions = {
      f'{source}->{target}': (u, t)
      for u, source in enumerate(edges_lib.source_names(config))
      for t, target in enumerate(edges_lib.target_names(config))}
  real = edges_lib.is_edge(config)
  for name, edge in found.items():
    at = positions.get(name)
    if at is None or not real[at]:
      raise ValueError(
          f'{where} names {name!r}, which is not an edge of this model;'
          " wanted names like 'input->a0.h0<q>', 'a0.h0->m0' and 'm0->logits'."
          f' {_REMEDY}')
    _check_object(where, f'edge {name!r}', edge)
    _check_in_graph(where, name, edge)
    score = edge.get('score')
    if score is not None and not _is_score(score):
      raise ValueError(
          f"{where}: 'score' of {name!r} is {_short(score)}; wanted a finite"
          f' number. {_REMEDY}')
    yield name, at, edge


def _is_score(value: Any) -> bool:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  return abs(value) <= float(np.finfo(np.float32).max)  # False for NaN.
