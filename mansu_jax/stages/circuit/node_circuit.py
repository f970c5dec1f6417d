"""Node scores -> a circuit of nodes, with its report."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.circuits import curve
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_weights
from mansu_jax.models import config as model_config
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.circuit import circuit_report
from mansu_jax.stages.circuit import circuit_summary
from mansu_jax.stages.circuit import node_stability
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.circuit import stability

Settings = settings_lib.Settings
Means = dict[str, np.ndarray]
Choose = Callable[[Means], tuple[select.Ranking, graph.Circuit]]


class _Drawn(NamedTuple):
  """The circuit to edit, and random circuits to compare it with."""

  circuit: graph.Circuit
  movable: dict[str, np.ndarray] | None
  randoms: list[graph.Circuit]


def find(
    settings: Settings, model: loading.LoadedModel, scored: outputs.Scored,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> outputs.Found:
  """Selects the circuit and measures its faithfulness and stability.

  Args:
    settings: the stage's settings.
    model: the base model.
    scored: the pairs and their scores.
    cache: cache of finished stages.

  Raises:
    ValueError: no node is within the budget, or as `faithfulness.spread`.
  """
  choose = lambda means: select.choose(
      means, settings.attribution.level, settings.circuit, model.config,
      scored.contrast, for_edit=settings.for_edit)
  return make(settings, model, scored, choose, cache=cache)


def make(
    settings: Settings, model: loading.LoadedModel, scored: outputs.Scored,
    choose: Choose, movable: dict[str, np.ndarray] | None = None, *,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> outputs.Found:
  """As `find`, with a given selection.

  Args:
    settings: the stage's settings.
    model: the base model.
    scored: the pairs and their scores.
    choose: ranks nodes and selects the circuit, by mean scores.
    movable: which units of each leaf may change, by leaf name [L, nodes]; None:
      all units of the circuit.
    cache: cache of finished stages.
  """
  ranking, attributed = choose(scored.means)
  drawn = _draw(settings, model.config, attributed, movable)
  circuit = drawn.circuit
  measure = make_measure(settings, model, scored.pairs)
  report = cache.get_or_compute_json('circuit', lambda: _describe(
      settings, model.config, measure, ranking, drawn))
  report |= {'pairs': len(scored.pairs)} | _sizes(
      model, scored.means, circuit, drawn.movable)
  logging.info(
      'circuit: %s, %.2f%% of weights, faithfulness %.2f (random %.2f)',
      report['nodes'], 100 * report['share_of_weights'],
      report['faithfulness'], report['random']['mean'])
  selected, shares = None, None
  if scored.each is not None and settings.circuit.selection != 'random':
    selected = node_stability.make(
        settings, model, circuit, lambda means: choose(means)[1],
        functools.partial(make_measure, settings, model), scored.groups,
        scored.pairs, scored.each)
    run = lambda row: measure.metrics(selected.method.unflatten(row))
    report['stability'], shares = stability.measure(
        settings, selected, run, cache)
  report |= circuit_summary.of_nodes(circuit, scored.means, shares)
  return outputs.Found(
      circuit=circuit, ranking=ranking, means=scored.means, report=report,
      selected=selected, movable=drawn.movable)


def make_measure(
    settings: Settings, model: loading.LoadedModel, pairs: stability.Pairs
) -> faithfulness.Faithfulness[graph.Circuit]:
  """Measures circuits of nodes on the first `--circuit_pairs` pairs."""
  most = settings.circuit.pairs
  batch = pair_batches.pack(pairs[:most], most)[0]
  return faithfulness.of_nodes(
      model.config, model.params, jax.device_put(batch),
      settings.attribution.level,
      select.layer_range(settings.circuit, model.config.num_layers))


def _draw(
    settings: Settings, config: model_config.ModelConfig,
    attributed: graph.Circuit, movable: dict[str, np.ndarray] | None) -> _Drawn:
  """Draws the random circuits; with --circuit_selection=random, also C."""
  options = settings.circuit
  layers = select.layer_range(options, config.num_layers)
  rng, circuit = np.random.default_rng(settings.seed), attributed
  if options.selection == 'random':
    circuit = select.matched_random(attributed, layers, rng)
    movable = movable and edge_weights.transfer(
        movable, attributed, circuit, rng)
  return _Drawn(circuit, movable, [
      select.matched_random(attributed, layers, rng)
      for _ in range(options.random_circuits)])


def _describe(
    settings: Settings, config: model_config.ModelConfig,
    measure: faithfulness.Faithfulness[graph.Circuit],
    ranking: select.Ranking, drawn: _Drawn) -> dict[str, Any]:
  """Faithfulness of the circuit and of prefixes of the ranking."""
  options = settings.circuit
  prefixes = _prefixes(settings, config, ranking)
  found = circuit_report.compare(
      measure, drawn.circuit, empty=graph.empty(config),
      randoms=drawn.randoms, same=graph.equal_in_effect)
  found |= circuit_report.smallest_prefix(options, prefixes, measure)
  found |= {'level': settings.attribution.level,
            'selection': options.selection}
  if not settings.for_edit:
    found |= circuit_report.trace(options, prefixes, measure)
  return found


def _prefixes(
    settings: Settings, config: model_config.ModelConfig,
    ranking: select.Ranking) -> curve.Prefixes[graph.Circuit]:
  """The circuits of a ranking's neurons and query heads, by size."""
  ranking = select.of_kinds(ranking, graph.acting(ranking.kinds))
  layers = select.layer_range(settings.circuit, config.num_layers)
  rng = np.random.default_rng(settings.seed)
  first = lambda size: select.prefix(ranking, size, config)
  return curve.Prefixes(
      unit='nodes', count=int(ranking.node.size), first=first,
      draw=lambda size: select.matched_random(first(size), layers, rng),
      same=graph.equal_in_effect)


def _sizes(
    model: loading.LoadedModel, means: Means, circuit: graph.Circuit,
    movable: dict[str, np.ndarray] | None) -> dict[str, Any]:
  """The circuit's number of nodes, and its shares of scores and weights."""
  kinds = graph.acting(circuit.kinds) or circuit.kinds  # Each score once.
  chosen = sum(np.abs(means[k])[circuit[k]].sum() for k in kinds)
  weights = edge_weights.num_weights(circuit, movable, model.config)
  return {
      'nodes': {k: int(circuit[k].sum()) for k in circuit.kinds},
      'share_of_absolute_score': float(
          chosen / sum(np.abs(means[k]).sum() for k in kinds)),
      'share_of_weights': weights / tree_paths.count(model.params)}
