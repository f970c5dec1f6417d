"""The programs that score, run and move a circuit (see `runtime.programs`)."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import curve
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import param_mask
from mansu_jax.circuits.edges import edge_patching
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.models import layout
from mansu_jax.runtime import programs
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import scoring
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.prepare import abstract

Pairs = Sequence[pairs_lib.AttributionPair]

_STABILITY_RUNS = 3  # The circuit, and the circuits of both halves.


def attribute(
    model: abstract.AbstractModel, settings: settings_lib.Settings,
    splits: splits_lib.Splits) -> programs.Programs:
  """Scores the pairs, then runs random circuits and prefixes of the ranking.

  The model is assumed to answer every pair.

  Args:
    model: the base.
    settings: the stage's settings.
    splits: the questions to make pairs from.
  """
  options, level = settings.circuit, settings.attribution.level
  yield programs.lowered_by('--attribution_batch', '--circuit_pairs')
  yield programs.hold(base=model.params)
  pairs = prompt_pairs.forget_pairs(settings, splits, model.tokenizer)
  contrast = prompt_pairs.retain_pairs(
      settings, splits, model.tokenizer) if options.contrast else []
  for some in filter(None, (pairs, contrast)):
    yield from scores(model, settings.attribution, some)
    if level == 'edge':
      yield from _edge_scores(model, settings.attribution, some)
  selected = options.selection != 'random'
  resampled, pairs = bool(options.resamples) and selected, pairs[:options.pairs]
  yield from _faithfulness(
      model, options, pairs, stability=resampled and level != 'edge')
  if level == 'edge' and selected:
    yield from _edge_faithfulness(
        model, settings.attribution, pairs, stability=resampled)


def scores(
    model: abstract.AbstractModel, options: run_config.AttributionConfig,
    pairs: Pairs, models: int = 1) -> programs.Programs:
  """Scores the nodes of `models` models on some pairs."""
  if not pairs:
    return
  batches = pair_batches.to_score(pairs, options.batch, model.config)
  yield programs.program(
      'eap_ig.pair_scores', eap_ig.pair_scores, model.config, model.params,
      programs.shapes_of(batches[0]), calls=models * len(batches),
      steps=options.steps)


def _edge_scores(
    model: abstract.AbstractModel, options: run_config.AttributionConfig,
    pairs: Pairs) -> programs.Programs:
  _, batches = scoring.edge_batches(options, pairs)
  widths = collections.Counter(batch.clean.shape[1] for batch in batches)
  by_width = {batch.clean.shape[1]: batch for batch in batches}
  for width, batch in by_width.items():
    yield programs.program(
        'edges.pair_scores', edges_lib.pair_scores, model.config, model.params,
        programs.shapes_of(batch), calls=widths[width],
        points=edges_lib.eap_ig_points(options.steps))


def _faithfulness(
    model: abstract.AbstractModel, options: run_config.CircuitConfig,
    pairs: Pairs, *, stability: bool) -> programs.Programs:
  """Runs all nodes, the circuit, no nodes, random circuits and prefixes.

  Stability runs the circuit again, and those of two halves of the pairs.
  """
  batch = programs.shapes_of(pair_batches.pack(pairs, len(pairs))[0])
  _, taps = yield programs.program(
      'faithfulness.corrupted', faithfulness.corrupted, model.config,
      model.params, batch)
  keep = model.placer.replicate({site: jax.ShapeDtypeStruct(
      taps[site].shape[:1] + taps[site].shape[3:4], jnp.float32)
                                 for site in taps})
  nodes = sum(model.circuit[kind].size for kind in model.circuit.kinds)
  yield programs.program(
      'faithfulness.patched_metric', faithfulness.patched_metric,
      model.config, model.params, batch, taps, keep,
      calls=3 + options.random_circuits + curve.max_evaluations(nodes) + (
          _STABILITY_RUNS if stability else 0),
      at_most=True)  # The search for the smallest prefix may end earlier.


def _edge_faithfulness(
    model: abstract.AbstractModel, options: run_config.AttributionConfig,
    pairs: Pairs, *, stability: bool) -> programs.Programs:
  """Runs all edges, no edges and the circuit's; stability as for nodes."""
  batches = pair_batches.pack(pairs, options.batch)
  batch = programs.shapes_of(batches[0])
  given = yield programs.program(
      'edge_patching.corrupted', edge_patching.corrupted, model.config,
      model.params, batch, calls=len(batches))
  patched = model.placer.replicate(jax.ShapeDtypeStruct(
      edges_lib.is_edge(model.config).shape, bool))
  yield programs.program(
      'edge_patching.metric', edge_patching.metric, model.config, model.params,
      batch, given, patched,
      calls=(3 + (_STABILITY_RUNS if stability else 0)) * len(batches))


def gather(model: abstract.AbstractModel, calls: int = 1) -> programs.Programs:
  """Gathers the circuit's slices, leaf by leaf; returns their shapes."""
  params, out = model.params, {}
  flat = tree_paths.flatten(params)
  for leaf in tree_paths.flatten(
      jax.eval_shape(param_mask.gather, params, model.index)):
    out[leaf] = yield programs.program(
        f'slices of {leaf}', param_mask.gather_leaf, leaf, flat[leaf],
        model.index, calls=calls)
  return tree_paths.unflatten(out)


def gather_grid(
    model: abstract.AbstractModel, leaf: str, shared: types.PyTree
) -> programs.Programs:
  """Gathers the circuit's part of a leaf's block parameters."""
  _, axis = layout.UNIT_AXIS[leaf]
  width = tree_paths.flatten(model.params)[leaf].shape[axis + 1]
  for part in jax.tree.leaves(shared):
    yield programs.program(
        f'grid slices of {leaf}', param_mask.gather_leaf, leaf, part,
        model.index, width // part.shape[axis + 1])


def scatter(
    model: abstract.AbstractModel, slices: types.PyTree, calls: int = 1
) -> programs.Programs:
  """Scatters slices into a model, whose matrices the stage holds already."""
  flat = tree_paths.flatten(model.params)
  for leaf, part in tree_paths.flatten(slices).items():
    yield programs.program(
        f'scatter into {leaf}', param_mask.scatter_leaf, leaf, flat[leaf],
        part, model.index, calls=calls, held=True)
