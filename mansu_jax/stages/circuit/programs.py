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
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.runtime import programs
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import scoring
from mansu_jax.stages.prepare import abstract

Pairs = Sequence[pairs_lib.AttributionPair]

_STABILITY_RUNS = 3  # The circuit, and the circuits of both halves.


def attribute(run: abstract.AbstractRun) -> programs.Programs:
  """Scores the pairs, then runs random circuits and prefixes of the ranking.

  The model is assumed to answer every pair.
  """
  config = run.config
  yield programs.lowered_by('--attribution_batch', '--circuit_pairs')
  yield programs.hold(base=run.model.params)
  pairs = forget_pairs(run)
  contrast = retain_pairs(run) if config.circuit.contrast else []
  by_edge = config.attribution.level == 'edge'
  for some in filter(None, (pairs, contrast)):
    yield from scores(run, some)
    if by_edge:
      yield from _edge_scores(run, some)
  selected = config.circuit.selection != 'random'
  stability = bool(config.circuit.resamples) and selected
  pairs = pairs[:config.circuit.pairs]
  yield from _faithfulness(run, pairs, stability=stability and not by_edge)
  if by_edge and selected:
    yield from _edge_faithfulness(run, pairs, stability=stability)


def _edge_scores(run: abstract.AbstractRun, pairs: Pairs) -> programs.Programs:
  options, model = run.config.attribution, run.model
  _, batches = scoring.edge_batches(options, pairs)
  widths = collections.Counter(batch.clean.shape[1] for batch in batches)
  by_width = {batch.clean.shape[1]: batch for batch in batches}
  for width, batch in by_width.items():
    yield programs.program(
        'edges.pair_scores', edges_lib.pair_scores, model.config, model.params,
        programs.shapes_of(batch), calls=widths[width],
        points=edges_lib.eap_ig_points(options.steps))


def _faithfulness(
    run: abstract.AbstractRun, pairs: Pairs, *, stability: bool
) -> programs.Programs:
  """Runs all nodes, the circuit, no nodes, random circuits and prefixes.

  Stability runs the circuit again, and those of two halves of the pairs.
  """
  model = run.model
  batch = programs.shapes_of(pair_batches.pack(pairs, len(pairs))[0])
  _, taps = yield programs.program(
      'faithfulness.corrupted', faithfulness.corrupted, model.config,
      model.params, batch)
  keep = run.placer.replicate({site: jax.ShapeDtypeStruct(
      taps[site].shape[:1] + taps[site].shape[3:4], jnp.float32)
                               for site in taps})
  nodes = sum(run.circuit[kind].size for kind in run.circuit.kinds)
  yield programs.program(
      'faithfulness.patched_metric', faithfulness.patched_metric,
      model.config, model.params, batch, taps, keep,
      calls=3 + run.config.circuit.random_circuits
      + curve.max_evaluations(nodes) + (_STABILITY_RUNS if stability else 0),
      at_most=True)  # The search for the smallest prefix may end earlier.


def _edge_faithfulness(
    run: abstract.AbstractRun, pairs: Pairs, *, stability: bool
) -> programs.Programs:
  """Runs all edges, no edges and the circuit's; stability as for nodes."""
  model = run.model
  batches = pair_batches.pack(pairs, run.config.attribution.batch)
  batch = programs.shapes_of(batches[0])
  given = yield programs.program(
      'edge_patching.corrupted', edge_patching.corrupted, model.config,
      model.params, batch, calls=len(batches))
  patched = run.placer.replicate(jax.ShapeDtypeStruct(
      edges_lib.is_edge(model.config).shape, bool))
  yield programs.program(
      'edge_patching.metric', edge_patching.metric, model.config, model.params,
      batch, given, patched,
      calls=(3 + (_STABILITY_RUNS if stability else 0)) * len(batches))


def scores(
    run: abstract.AbstractRun, pairs: Pairs, models: int = 1
) -> programs.Programs:
  """Scores the nodes of `models` models on some pairs."""
  if not pairs:
    return
  options, model = run.config.attribution, run.model
  batches = pair_batches.to_score(pairs, options.batch, model.config)
  yield programs.program(
      'eap_ig.pair_scores', eap_ig.pair_scores, model.config, model.params,
      programs.shapes_of(batches[0]), calls=models * len(batches),
      steps=options.steps)


def forget_pairs(run: abstract.AbstractRun) -> Pairs:
  """The run's forget pairs."""
  return prompt_pairs.forget_pairs(
      run.config.attribution, run.inputs.splits, run.model.tokenizer,
      seed=run.config.seed, chat=run.config.data.chat)


def retain_pairs(run: abstract.AbstractRun) -> Pairs:
  """The run's retain pairs."""
  return prompt_pairs.retain_pairs(
      run.config.attribution, run.inputs.splits, run.model.tokenizer,
      seed=run.config.seed, chat=run.config.data.chat)


def gather(run: abstract.AbstractRun, calls: int = 1) -> programs.Programs:
  """Gathers the circuit's slices, leaf by leaf; returns their shapes."""
  params, out = run.model.params, {}
  flat = tree_paths.flatten(params)
  for leaf in tree_paths.flatten(
      jax.eval_shape(param_mask.gather, params, run.index)):
    out[leaf] = yield programs.program(
        f'slices of {leaf}', param_mask.gather_leaf, leaf, flat[leaf],
        run.index, calls=calls)
  return tree_paths.unflatten(out)


def gather_grid(
    run: abstract.AbstractRun, leaf: str, shared: types.PyTree
) -> programs.Programs:
  """Gathers the circuit's part of a leaf's block parameters."""
  _, axis = param_mask.UNIT_AXIS[leaf]
  width = tree_paths.flatten(run.model.params)[leaf].shape[axis + 1]
  for part in jax.tree.leaves(shared):
    yield programs.program(
        f'grid slices of {leaf}', param_mask.gather_leaf, leaf, part, run.index,
        width // part.shape[axis + 1])


def scatter(
    run: abstract.AbstractRun, slices: types.PyTree, calls: int = 1
) -> programs.Programs:
  """Scatters slices into a model, whose matrices the stage holds already."""
  flat = tree_paths.flatten(run.model.params)
  for leaf, part in tree_paths.flatten(slices).items():
    yield programs.program(
        f'scatter into {leaf}', param_mask.scatter_leaf, leaf, flat[leaf],
        part, run.index, calls=calls, held=True)
