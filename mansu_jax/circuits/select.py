"""From scores to a circuit under a budget of weights."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.config import circuit as circuit_config
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder


class Ranking(NamedTuple):
  """Candidate nodes, best first."""

  kind: np.ndarray  # [n] int, position in `kinds`
  layer: np.ndarray  # [n] int
  node: np.ndarray  # [n] int
  cost: np.ndarray  # [n] int, weights that the node owns
  kinds: tuple[str, ...]


def layer_range(options: circuit_config.CircuitConfig, num_layers: int
                ) -> range:
  """The layers that may hold the circuit; every layer where they are open.

  Raises:
    ValueError: the range is empty or outside the model.
  """
  first, last = options.first_layer, options.last_layer
  first, last = 0 if first is None else first, -1 if last is None else last
  last = last + num_layers if last < 0 else last
  if not 0 <= first <= last < num_layers:
    raise ValueError(
        f'--circuit_first_layer={options.first_layer} and --circuit_last_layer'
        f'={options.last_layer} select no layer of the model\'s {num_layers};'
        f' wanted 0 <= first <= last < {num_layers}.')
  return range(first, last + 1)


def candidate_kinds(level: str, *, for_edit: bool) -> tuple[str, ...]:
  """The kinds of node that a circuit may hold.

  A key/value head owns weights that an edit may change, but acts through its
  query heads alone. So it is a candidate only if the circuit is to be edited.

  Args:
    level: a key of `graph.LEVEL_KINDS`.
    for_edit: whether the circuit's weights will be edited.
  """
  kinds = graph.LEVEL_KINDS[level]
  return kinds if for_edit else graph.acting(kinds)


def choose(
    means: dict[str, np.ndarray], level: str,
    options: circuit_config.CircuitConfig, config: model_config.ModelConfig,
    contrast: dict[str, np.ndarray] | None = None, *, for_edit: bool = True
) -> tuple[Ranking, graph.Circuit]:
  """Ranks nodes by mean scores and selects those within the budget.

  Args:
    means: mean scores by kind, [L, nodes].
    level: a key of `graph.LEVEL_KINDS`.
    options: budget, layer range, per-layer cap and weight of the contrast.
    config: the model's config.
    contrast: mean scores on retain pairs, for `--circuit_contrast`.
    for_edit: whether the circuit's weights will be edited.

  Returns:
    The ranking of all candidates, and the circuit.

  Raises:
    ValueError: as `layer_range` and `size_within`.

  The model of the example has one layer, with three neurons of 12 weights each.

  Example:
    >>> config = model_config.ModelConfig(
    ...     vocab_size=8, d_model=4, num_layers=1, num_heads=2, num_kv_heads=1,
    ...     d_head=2, d_ff=3)
    >>> means = {'neurons': np.array([[0.1, -0.9, 0.3]])}
    >>> options = circuit_config.CircuitConfig(budget=0.2)
    >>> ranking, circuit = choose(means, 'neuron', options, config)
    >>> ranking.node.tolist(), circuit.neurons.tolist()
    ([1, 2, 0], [[False, True, True]])
  """
  values = {kind: contrasted(scores, contrast and contrast[kind],
                             options.contrast)
            for kind, scores in means.items()}
  ranking = of_kinds(rank(values, level, options, config),
                     candidate_kinds(level, for_edit=for_edit))
  return ranking, within_budget(ranking, options.budget, config)


def contrasted(
    scores: np.ndarray, retain: np.ndarray | None, weight: float
) -> np.ndarray:
  """|scores| of nodes or edges, less a multiple of |scores on retain pairs|."""
  if retain is None:
    return np.abs(scores)
  return np.abs(scores) - weight * np.abs(retain)


def within_budget(
    ranking: Ranking, budget: float, config: model_config.ModelConfig
) -> graph.Circuit:
  """The longest prefix of a ranking within a share of all weights.

  Raises:
    ValueError: as `size_within`.
  """
  total = tree_paths.count(decoder.abstract(config))
  return prefix(ranking, size_within(ranking, budget, total), config)


def of_kinds(ranking: Ranking, kinds: Sequence[str]) -> Ranking:
  """A ranking without the nodes of all other kinds."""
  return _keep(ranking, np.isin(ranking.kind, [
      k for k, kind in enumerate(ranking.kinds) if kind in kinds]))


def _keep(ranking: Ranking, kept: np.ndarray) -> Ranking:
  return ranking._replace(**{
      field: getattr(ranking, field)[kept]
      for field in ('kind', 'layer', 'node', 'cost')})


def rank(
    values: dict[str, np.ndarray], level: str,
    options: circuit_config.CircuitConfig, config: model_config.ModelConfig,
    costs: dict[str, np.ndarray] | None = None) -> Ranking:
  """Ranks the nodes of a level by value per weight, within range and cap.

  Args:
    values: values by kind, [L, nodes], of any sign; the largest matter most.
    level: a key of `graph.LEVEL_KINDS`.
    options: layer range and per-layer cap.
    config: the model's config.
    costs: number of each node's weights that may change, by kind, int
      [L, nodes], at least 1; None: all weights of the node.

  Returns:
    The ranking, with the largest value per weight first.
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


def nonzero(
    ranking: Ranking, values: dict[str, np.ndarray] | graph.Circuit) -> Ranking:
  """A ranking without the nodes whose value, by kind [L, nodes], is 0."""
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
  """The number of leading nodes that fit a budget, a share of all weights.

  Raises:
    ValueError: the first node does not fit.
  """
  fits = np.cumsum(ranking.cost) <= budget * total_weights
  if not fits.any():
    raise ValueError(
        f'--circuit_budget={budget} of {total_weights} weights is'
        f' {budget * total_weights:.0f} weights, less than the first node of'
        f' the ranking owns ({ranking.cost[0]}); raise the budget.')
  return int(fits.sum())


def fills(circuit: graph.Circuit, layers: range) -> bool:
  """Whether `matched_random` can draw no circuit but this one."""
  parts = [circuit[kind][layer] for kind in graph.KINDS for layer in layers]
  return all(nodes.all() or not nodes.any() for nodes in parts)


def count_same(count: int, draws: int, compared: str) -> dict[str, Any]:
  """The record's entry of random circuits that equal the circuit.

  Args:
    count: number of them.
    draws: number of random circuits.
    compared: the quantity in which the circuits are compared.

  Returns:
    `same`, the count; unless it is 0, also `warning`, a sentence that is logged
    too.
  """
  if not count:
    return {'same': 0}
  informative = (
      'The comparison is uninformative.' if count == draws else
      'Only the other draws are informative.')
  text = (
      f'Comparison of {compared}: {count} of {draws} random circuits equal the'
      ' circuit, because its layers have too few other nodes or edges.'
      f' {informative} Choose a smaller circuit (--circuit_budget or'
      ' --circuit_edges), or more layers (--circuit_first_layer,'
      ' --circuit_last_layer).')
  logging.warning('%s', text)
  return {'same': count, 'warning': text}


def matched_random(
    circuit: graph.Circuit, layers: range, rng: np.random.Generator,
    among: graph.Circuit | None = None) -> graph.Circuit:
  """A random circuit with as many nodes of each kind in each layer.

  Args:
    circuit: the circuit to match.
    layers: the layers that may hold it.
    rng: generator of the draw.
    among: nodes to draw from; None: all nodes.
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
  """The nodes of largest |score| per weight, with half of a circuit's weights.

  Args:
    circuit: the whole circuit.
    scores: mean scores by kind, [L, nodes].
    config: the model's config.
  """
  every = circuit_config.CircuitConfig(
      first_layer=0, last_layer=-1, per_layer_cap=1.0)
  ranking = nonzero(rank(
      {kind: np.abs(scores[kind]) for kind in graph.KINDS}, 'neuron_and_head',
      every, config), circuit)
  half = graph.num_weights(circuit, config) / 2
  return prefix(ranking, int((np.cumsum(ranking.cost) <= half).sum()), config)
