"""From scores to a circuit under a budget of weights."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.config import run as run_config
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder


class Ranking(NamedTuple):
  """Candidate nodes, best first."""

  kind: np.ndarray  # [n] int, position in `kinds`
  layer: np.ndarray  # [n] int
  node: np.ndarray  # [n] int
  cost: np.ndarray  # [n] int, weights that the node owns
  kinds: tuple[str, ...]


def layer_range(options: run_config.CircuitConfig, num_layers: int) -> range:
  """The layers that may hold the circuit.

  Raises:
    ValueError: the range is empty or outside the model.
  """
  first, last = options.first_layer, options.last_layer
  last = last + num_layers if last < 0 else last
  if not 0 <= first <= last < num_layers:
    raise ValueError(
        f'--circuit_first_layer={options.first_layer} and --circuit_last_layer'
        f'={options.last_layer} give no layer of the model\'s {num_layers};'
        f' wanted 0 <= first <= last < {num_layers}.')
  return range(first, last + 1)


def candidate_kinds(config: run_config.RunConfig) -> tuple[str, ...]:
  """The kinds of node that may be selected.

  A key/value head owns weights that an edit may move. As a node it is the query
  heads that share it, so where circuits are all that is wanted it is none.
  """
  kinds = graph.LEVEL_KINDS[config.attribution.level]
  return graph.acting(kinds) if config.mode == 'attribute' else kinds


def choose(
    config: run_config.RunConfig, shapes: model_config.ModelConfig,
    means: dict[str, np.ndarray],
    contrast: dict[str, np.ndarray] | None = None
) -> tuple[Ranking, graph.Circuit]:
  """The ranking of nodes by mean scores, and what of it is in the budget.

  Args:
    config: the run's.
    shapes: the model's.
    means: scores by kind, [L, nodes].
    contrast: scores on retain pairs, for `--circuit_contrast`.

  Raises:
    ValueError: as `layer_range` and `size_within`.
  """
  values = contrasted(means, contrast, config.circuit.contrast)
  ranking = of_kinds(
      rank(values, config.attribution.level, config.circuit, shapes),
      candidate_kinds(config))
  return within(config, shapes, ranking)


def contrasted(
    means: dict[str, np.ndarray], contrast: dict[str, np.ndarray] | None,
    weight: float) -> dict[str, np.ndarray]:
  """|scores|, less a share of those on retain pairs; by kind, [L, nodes]."""
  if contrast is None:
    return {kind: np.abs(scores) for kind, scores in means.items()}
  return {kind: np.abs(scores) - weight * np.abs(contrast[kind])
          for kind, scores in means.items()}


def within(
    config: run_config.RunConfig, shapes: model_config.ModelConfig,
    ranking: Ranking) -> tuple[Ranking, graph.Circuit]:
  """A ranking, and as much of it as is in the budget; see `choose`."""
  total = tree_paths.count(decoder.abstract(shapes))
  size = size_within(ranking, config.circuit.budget, total)
  return ranking, prefix(ranking, size, shapes)


def of_kinds(ranking: Ranking, kinds: Sequence[str]) -> Ranking:
  """The nodes of a ranking that are of some kinds."""
  return _keep(ranking, np.isin(ranking.kind, [
      k for k, kind in enumerate(ranking.kinds) if kind in kinds]))


def _keep(ranking: Ranking, kept: np.ndarray) -> Ranking:
  return ranking._replace(**{
      field: getattr(ranking, field)[kept]
      for field in ('kind', 'layer', 'node', 'cost')})


def rank(
    values: dict[str, np.ndarray], level: str,
    options: run_config.CircuitConfig, config: model_config.ModelConfig,
    costs: dict[str, np.ndarray] | None = None) -> Ranking:
  """Ranks the nodes of a level by value a weight, within range and cap.

  Args:
    values: by kind, [L, nodes], large where a node matters; of any sign.
    level: a key of `graph.LEVEL_KINDS`.
    options: layer range and per-layer cap.
    config: the model's.
    costs: by kind, int [L, nodes], weights of a node that may change, at least
      1; None: all that it owns.

  Returns:
    The ranking, the largest value a weight first.
  """
  kinds = graph.LEVEL_KINDS[level]
  layers = layer_range(options, config.num_layers)
  columns = []
  for k, kind in enumerate(kinds):
    own = values[kind]
    cost = costs[kind] if costs else np.full(
        own.shape, graph.costs(config)[kind])
    limit = max(1, math.floor(options.per_layer_cap * own.shape[1]))
    for layer in layers:
      best = np.argsort(-own[layer], kind='stable')[:limit]
      columns.append(np.stack([
          np.full(limit, k), np.full(limit, layer), best,
          cost[layer, best], own[layer, best] / cost[layer, best]]))
  table = np.concatenate(columns, axis=1)
  table = table[:, np.argsort(-table[4], kind='stable')]
  kind, layer, node, weights = table[:4].astype(int)
  return Ranking(kind, layer, node, weights, kinds)


def only(
    ranking: Ranking, values: dict[str, np.ndarray] | graph.Circuit) -> Ranking:
  """The nodes of a ranking whose value, by kind [L, nodes], is not 0."""
  kept = np.array([
      values[ranking.kinds[k]][layer, node] != 0
      for k, layer, node in zip(ranking.kind, ranking.layer, ranking.node)],
                  bool)
  return _keep(ranking, kept)


def prefix(
    ranking: Ranking, size: int, config: model_config.ModelConfig
) -> graph.Circuit:
  """The circuit of the first `size` nodes of a ranking."""
  circuit = graph.empty(config)
  for k, kind in enumerate(ranking.kinds):
    chosen = ranking.kind[:size] == k
    circuit[kind][ranking.layer[:size][chosen],
                  ranking.node[:size][chosen]] = True
  return circuit


def size_within(ranking: Ranking, budget: float, total_weights: int) -> int:
  """How many leading nodes fit a budget, a share of all weights.

  Raises:
    ValueError: the first node does not fit.
  """
  fits = np.cumsum(ranking.cost) <= budget * total_weights
  if not fits.any():
    raise ValueError(
        f'--circuit_budget={budget} of {total_weights} weights is'
        f' {budget * total_weights:.0f} weights, less than the first node of'
        f' the ranking ({ranking.cost[0]}); raise the budget.')
  return int(fits.sum())


def fills(circuit: graph.Circuit, layers: range) -> bool:
  """Whether no other circuit of as many nodes in each layer exists."""
  parts = [circuit[kind][layer] for kind in graph.KINDS for layer in layers]
  return all(nodes.all() or not nodes.any() for nodes in parts)


def same(one: graph.Circuit, other: graph.Circuit) -> bool:
  """Whether two circuits hold the same nodes, of the kinds that act."""
  return all(np.array_equal(one[kind], other[kind])
             for kind in graph.acting(graph.KINDS))


def count_same(count: int, draws: int, compared: str) -> dict[str, Any]:
  """How many random circuits are the circuit itself, for the record.

  Args:
    count: how many are.
    draws: of how many.
    compared: what of them is compared with the circuit's.

  Returns:
    `same`, the count; unless that is 0, also `warning`, a sentence, which the
    log has too.
  """
  if not count:
    return {'same': 0}
  every = count == draws
  text = (
      f'{f"All {draws}" if every else f"{count} of {draws}"} random circuits'
      f' whose {compared} is compared are the circuit itself: its layers have'
      ' too few other nodes or edges to draw from, and the comparison'
      f' {"says nothing" if every else "rests on the others"}. Take a smaller'
      ' circuit (--circuit_budget, or --circuit_edges), or more layers'
      ' (--circuit_first_layer, --circuit_last_layer).')
  logging.warning('%s', text)
  return {'same': count, 'warning': text}


def matched_random(
    circuit: graph.Circuit, layers: range, rng: np.random.Generator,
    among: graph.Circuit | None = None) -> graph.Circuit:
  """As many nodes of each kind in each layer, drawn at random.

  Args:
    circuit: whose nodes are counted.
    layers: that it may have nodes in.
    rng: of the draw.
    among: what is drawn from; None: all nodes.
  """
  out = {}
  for kind in graph.KINDS:
    mask = np.zeros_like(circuit[kind])
    for layer in layers:
      count = int(circuit[kind][layer].sum())
      nodes = np.arange(mask.shape[1]) if among is None else np.flatnonzero(
          among[kind][layer])
      mask[layer, rng.choice(nodes, count, replace=False)] = True
    out[kind] = mask
  return graph.Circuit(**out)


def best_half(
    circuit: graph.Circuit, scores: dict[str, np.ndarray],
    config: model_config.ModelConfig) -> graph.Circuit:
  """Nodes of the largest |score| a weight, up to half of a circuit's weights.

  Args:
    circuit: C.
    scores: by kind, [L, nodes].
    config: the model's.
  """
  every = run_config.CircuitConfig(
      first_layer=0, last_layer=-1, per_layer_cap=1.0)
  ranking = only(rank(
      {kind: np.abs(scores[kind]) for kind in graph.KINDS}, 'neuron_and_head',
      every, config), circuit)
  half = graph.num_weights(circuit, config) / 2
  return prefix(ranking, int((np.cumsum(ranking.cost) <= half).sum()), config)
