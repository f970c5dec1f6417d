"""Selects circuits of edges by their scores, and runs them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_faithfulness
from mansu_jax.circuits.edges import edge_select
from mansu_jax.config import circuit as circuit_config
from mansu_jax.models import config as model_config
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.circuit import stability

CircuitConfig = circuit_config.CircuitConfig
ModelConfig = model_config.ModelConfig


def rank(
    options: CircuitConfig, config: ModelConfig, scores: np.ndarray,
    values: np.ndarray, most: int | None = None
) -> tuple[np.ndarray, Callable[[int], edge_circuit.EdgeCircuit]]:
  """Ranks the candidate edges.

  Args:
    options: layer range, per-layer cap and kind of ranking.
    config: the model's config.
    scores: mean scores on the pairs, [S, G].
    values: values to rank by, [S, G].
    most: number of edges to rank; None: all candidates.

  Returns:
    The ranked edges, as positions in the flattened [S, G]; and a function from
    a size to the pruned circuit of that many edges.
  """
  layers = select.layer_range(options, config.num_layers)
  never_patched = edge_select.outside_range(config, layers)
  allowed = edge_select.candidates(
      values, config, layers, options.per_layer_cap)
  if options.edge_selection == 'top':
    order = edge_select.rank_top(values, allowed)
  else:
    order = edge_select.rank_greedy(
        values, allowed, never_patched, config, most)
  scores = scores.astype(np.float32)
  return order, lambda size: edge_select.prune(
      edge_select.prefix(scores, order, size), never_patched, config)


def select_edges(
    options: CircuitConfig, config: ModelConfig, scores: np.ndarray,
    contrast: np.ndarray | None = None) -> edge_circuit.EdgeCircuit:
  """The circuit of `--circuit_edges` edges.

  Args:
    options: number of edges, layer range, per-layer cap and kind of ranking.
    config: the model's config.
    scores: mean scores on the pairs, [S, G].
    contrast: mean scores on retain pairs, for `--circuit_contrast`.
  """
  values = select.contrasted(scores, contrast, options.contrast)
  _, first = rank(options, config, scores, values, options.edges)
  return first(options.edges)


def random_edges(
    options: CircuitConfig, config: ModelConfig, scores: np.ndarray,
    contrast: np.ndarray | None, size: int, rng: np.random.Generator
) -> np.ndarray:
  """A random circuit, bool [S, G], selected and pruned like the real one.

  Selects by scores that are permuted among the edges into each layer, so the
  random circuit is connected too and as large before pruning.

  Args:
    options: as for `select_edges`, except for the number of edges.
    config: the model's config.
    scores: mean scores on the pairs, [S, G].
    contrast: as for `select_edges`.
    size: number of edges before pruning.
    rng: generator of the permutation.
  """
  values = edge_select.permute(
      select.contrasted(scores, contrast, options.contrast), config, rng)
  _, first = rank(options, config, scores, values, size)
  return first(size).chosen


def check_not_empty(
    options: CircuitConfig, circuit: edge_circuit.EdgeCircuit) -> None:
  """Raises ValueError if pruning left no edge of a circuit."""
  if circuit.size:
    return
  other = 'top' if options.edge_selection == 'greedy' else 'greedy'
  raise ValueError(
      f'--circuit_edges={options.edges} and --circuit_edge_selection='
      f'{options.edge_selection} select no path of edges from the input to the'
      ' logits; wanted at least one.'
      f' Raise --circuit_edges, give --circuit_edge_selection={other}, or a'
      ' larger --circuit_per_layer_cap'
      f' ({options.per_layer_cap:g} now).')


def make_measure(
    settings: settings_lib.Settings, model: loading.LoadedModel,
    pairs: stability.Pairs) -> faithfulness.Faithfulness[np.ndarray]:
  """Measures circuits of edges on the first `--circuit_pairs` pairs."""
  options, config = settings.circuit, model.config
  batches = pair_batches.pack(
      pairs[:options.pairs], settings.attribution.batch)
  return edge_faithfulness.of_edges(
      config, model.params, batches, edge_select.outside_range(
          config, select.layer_range(options, config.num_layers)))
