"""Pairs -> edge scores -> a circuit of edges, with its faithfulness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from mansu_jax.circuits import curve
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_faithfulness
from mansu_jax.circuits.edges import edge_select
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib


class Found(NamedTuple):
  """A circuit of edges."""

  circuit: edge_circuit.EdgeCircuit
  report: dict[str, Any]  # JSON-able account


def each_pair(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair]
) -> Iterator[tuple[int, edges_lib.EdgeScores]]:
  """Which pair, and its EAP-IG scores [S, G] and metrics, one after another."""
  options = config.attribution
  score = functools.partial(
      edges_lib.pair_scores, model.config, model.params,
      points=edges_lib.eap_ig_points(options.steps))
  order = np.argsort([len(p.clean_ids) for p in pairs], kind='stable')
  batches = pair_batches.pack(  # In order of length: less padding.
      [pairs[i] for i in order], options.batch, one_per_row=True)
  rows = (edges_lib.EdgeScores(*row)
          for found in eap_ig.of_real_pairs(score, batches)
          for row in zip(*found))
  return zip(order, rows)


def mean_scores(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair]) -> np.ndarray:
  """Mean EAP-IG scores of the pairs, float64 [S, G]."""
  total = np.zeros(edges_lib.is_edge(model.config).shape)
  for _, found in each_pair(config, model, pairs):
    total += found.edges
  return total / len(pairs)


def _ranked(
    options: run_config.CircuitConfig, shape: Any, scores: np.ndarray,
    values: np.ndarray, most: int | None = None
) -> tuple[np.ndarray, Callable[[int], edge_circuit.EdgeCircuit]]:
  """The ranking by values, and the circuit of its first so many."""
  layers = select.layer_range(options, shape.num_layers)
  never_patched, held = edge_select.given(shape, layers), scores.astype(np.float32)
  order = _order(options, shape, layers, values, most)
  return order, lambda size: edge_select.prune(
      edge_select.prefix(held, order, size), never_patched, shape)


def select_edges(
    config: run_config.RunConfig, shape: Any, scores: np.ndarray,
    contrast: np.ndarray | None = None) -> edge_circuit.EdgeCircuit:
  """The circuit of `--circuit_edges` edges.

  Args:
    config: the run's.
    shape: the model's config.
    scores: mean scores on the pairs, [S, G].
    contrast: mean scores on retain pairs, for `--circuit_contrast`.
  """
  options = config.circuit
  _, first = _ranked(
      options, shape, scores, _values(options, scores, contrast),
      options.edges)
  return first(options.edges)


def random_edges(
    config: run_config.RunConfig, shape: Any, scores: np.ndarray,
    contrast: np.ndarray | None, size: int, rng: np.random.Generator
) -> np.ndarray:
  """A random circuit, bool [S, G], selected and pruned as the real one.

  By scores that are permuted among the edges into each layer: so it is
  connected too, and has as many edges before pruning.

  Args:
    config: the run's.
    shape: the model's config.
    scores: mean scores on the pairs, [S, G].
    contrast: as in `select_edges`.
    size: edges before pruning.
    rng: of the draw.
  """
  values = edge_select.permute(
      _values(config.circuit, scores, contrast), shape, rng)
  _, first = _ranked(config.circuit, shape, scores, values, size)
  return first(size).chosen


def refuse_empty(
    options: run_config.CircuitConfig, circuit: edge_circuit.EdgeCircuit
) -> None:
  """Raises ValueError where pruning left no edge of a circuit."""
  if circuit.size:
    return
  other = 'top' if options.edge_selection == 'greedy' else 'greedy'
  raise ValueError(
      f'--circuit_edges={options.edges} and --circuit_edge_selection='
      f'{options.edge_selection} give a circuit of no edge: none of those'
      ' selected lies on a path from the input to the logits; wanted one at'
      f' least. Raise --circuit_edges, give --circuit_edge_selection={other},'
      ' or a larger --circuit_per_layer_cap'
      f' ({options.per_layer_cap:g} now).')


def faithfulness(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair]
) -> edge_faithfulness.EdgeFaithfulness:
  """Runs circuits of edges on the first `--circuit_pairs` pairs, in batches."""
  options, shape = config.circuit, model.config
  batches = pair_batches.pack(
      pairs[:options.pairs], config.attribution.batch)
  return edge_faithfulness.EdgeFaithfulness(
      shape, model.params, batches, edge_select.given(
          shape, select.layer_range(options, shape.num_layers)))


def find(
    config: run_config.RunConfig, model: Any,
    pairs: Sequence[pairs_lib.AttributionPair], scores: np.ndarray,
    contrast: np.ndarray | None = None) -> Found:
  """Selects `--circuit_edges` edges and measures how faithful they are.

  Args:
    config: the run's.
    model: the model.
    pairs: those that it answers.
    scores: mean scores on them, [S, G].
    contrast: mean scores on retain pairs, for `--circuit_contrast`.

  Raises:
    ValueError: the circuit is empty.
  """
  options, shape = config.circuit, model.config
  order, first = _ranked(
      options, shape, scores, _values(options, scores, contrast))
  circuit = first(options.edges)
  refuse_empty(options, circuit)
  measure = faithfulness(config, model, pairs)
  rng = np.random.default_rng(config.seed)
  draw = lambda size: random_edges(config, shape, scores, contrast, size, rng)
  report = account(
      config, shape, circuit, measure, lambda: draw(options.edges)) | {
          'selection': options.edge_selection,
          'edges_before_pruning': min(options.edges, order.size),
          'candidates': int(order.size), 'pairs': len(pairs)}
  report |= by_size(
      options, order.size, lambda size: first(size).chosen, draw, measure,
      report['faithfulness_of_none'])
  return Found(circuit, report)


def _values(options, scores, contrast) -> np.ndarray:
  """What is ranked: |scores|, less a share of those on retain pairs."""
  values = np.abs(scores)
  if contrast is None:
    return values
  return values - options.contrast * np.abs(contrast)


def _order(options, shape, layers, values, most) -> np.ndarray:
  """The ranking of all candidates, or the first: places in the values."""
  allowed = edge_select.candidates(
      values, shape, layers, options.per_layer_cap)
  if options.edge_selection == 'top':
    return edge_select.rank_top(values, allowed)
  return edge_select.rank_greedy(
      values, allowed, edge_select.given(shape, layers), shape, most)


def account(
    config: run_config.RunConfig, shape: Any,
    circuit: edge_circuit.EdgeCircuit, measure: Callable[[np.ndarray], float],
    draw: Callable[[], np.ndarray]) -> dict[str, Any]:
  """How large a circuit is and how faithful, beside none and random ones.

  Args:
    config: the run's.
    shape: the model's config.
    circuit: its edges.
    measure: faithfulness of edges, bool [S, G].
    draw: the edges of a random circuit.
  """
  drawn = [draw() for _ in range(config.circuit.random_circuits)]
  randoms = list(map(measure, drawn))
  report = {
      'level': 'edge', 'edges': circuit.size,
      'nodes': int(edge_circuit.nodes(circuit, shape).sum()),
      'faithfulness': measure(circuit.chosen),
      'faithfulness_of_none': measure(np.zeros_like(circuit.chosen)),
      'random': {'mean': float(np.mean(randoms)),
                 'max': float(np.max(randoms)), 'circuits': len(randoms)
                 } | select.count_same(
                     sum(np.array_equal(circuit.chosen, d) for d in drawn),
                     len(drawn), 'faithfulness')}
  logging.info(
      'circuit: %d edges, faithfulness %.2f (random %.2f)', circuit.size,
      report['faithfulness'], report['random']['mean'])
  return report


def by_size(
    options: run_config.CircuitConfig, count: int,
    first: Callable[[int], np.ndarray], draw: Callable[[int], np.ndarray],
    measure: Callable[[np.ndarray], float], none: float) -> dict[str, Any]:
  """The curve of a ranking, and its smallest faithful prefix.

  That is sought where the curve first reaches the target, by bisection.

  Args:
    options: the run's, of circuits.
    count: how many edges are ranked.
    first: the circuit of the first so many.
    draw: a random one of as many.
    measure: faithfulness of edges, bool [S, G].
    none: that of no edge.
  """
  found = curve.trace(count, first, draw, measure, options.curve_circuits,
                      np.array_equal)
  between = curve.bracket(
      [{'size': 0, 'faithfulness': none}, *found['curve']],
      options.faithfulness)
  edges = -1 if between is None else curve.bisect(
      lambda size: measure(first(size)), options.faithfulness, *between)
  return found | {'smallest_faithful_prefix': {
      'target': options.faithfulness, 'edges': edges, 'candidates': int(count)}}
