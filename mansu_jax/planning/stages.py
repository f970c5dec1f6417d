"""The stages of a run to unlearn, called on shapes: `pipeline` without arrays.

Data are read and packed by the run's own code, so that rows, batches and their
numbers are the run's. Only what the model would have said is made up: which
nodes are in the circuit (as many as the budget allows, drawn over its layers),
and reference states, whose values change no shape.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edge_patching
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.models import assemble
from mansu_jax.models import layout as model_layout
from mansu_jax.planning import job as job_lib
from mansu_jax.planning import measures
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.quant import make_grids
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import retain_kl
from mansu_jax.stages.train import training
from mansu_jax.unlearn import fisher as fisher_lib
from mansu_jax.unlearn import loop

_PREFIXES = 12  # Prefixes that `Faithfulness.smallest_prefix` runs, about.


def plan(job: job_lib.Job) -> None:
  """Goes through the run; the account is the recorder's."""
  _attribution(job)
  batches, theta, grids, views = _references(job)
  fisher = _fisher(job, batches, theta, grids, views)
  _unlearn(job, batches, theta, grids, views, fisher)
  measures.plan(job)


def _attribution(job: job_lib.Job) -> None:
  """Scores, then random circuits and prefixes of the ranking."""
  config, model, record = job.config, job.model, job.recorder
  pairs = job_lib.forget_pairs(job)
  with record.stage(
      'attribution', '--attribution_batch, --circuit_pairs',
      base=model.params):
    job_lib.scores(job, pairs)
    if config.circuit.contrast:
      job_lib.scores(job, attribution.retain_pairs(
          config, job.inputs.splits, model.tokenizer))
    if config.attribution.level == 'edge':
      batches = pair_batches.pack(pairs, config.attribution.batch, one_per_row=True)
      record.call(
          'edges.pair_scores', edges_lib.pair_scores, model.config,
          model.params, recorder_lib.shapes_of(batches[0]),
          calls=len(batches),
          points=edges_lib.eap_ig_points(config.attribution.steps))
      _edge_faithfulness(job, pairs)
    few = pairs[:config.circuit.pairs]
    batch = recorder_lib.shapes_of(pair_batches.pack(few, len(few))[0])
    _, taps = record.call(
        'faithfulness.corrupted', faithfulness.corrupted, model.config,
        model.params, batch)
    keep = record.whole({site: jax.ShapeDtypeStruct(
        taps[site].shape[:1] + taps[site].shape[3:4], jnp.float32)
                         for site in taps})
    record.call(
        'faithfulness.patched_metric', faithfulness.patched_metric,
        model.config, model.params, batch, taps, keep,
        calls=config.circuit.random_circuits + _PREFIXES)


def _edge_faithfulness(job: job_lib.Job, pairs: Any) -> None:
  """Of the circuit's edges, and of none and all of them."""
  config, model, record = job.config, job.model, job.recorder
  batches = pair_batches.pack(
      pairs[:config.circuit.pairs], config.attribution.batch)
  batch = recorder_lib.shapes_of(batches[0])
  given = record.call(
      'edge_patching.corrupted', edge_patching.corrupted, model.config,
      model.params, batch, calls=len(batches))
  patched = record.whole(jax.ShapeDtypeStruct(
      edges_lib.is_edge(model.config).shape, bool))
  record.call(
      'edge_patching.metric', edge_patching.metric, model.config, model.params,
      batch, given, patched, calls=3 * len(batches))


def _references(job: job_lib.Job) -> tuple[Any, ...]:
  """Reference states, the slices, their grids and the quantized view."""
  config, model, record = job.config, job.model, job.recorder
  shapes, names = model.config, quantizers.held(config.quant_schemes)
  rows, width = [], shapes.d_model

  def hidden(tokens, positions, segments):
    del positions, segments
    rows.append(tokens)
    return np.zeros((*tokens.shape, width), np.float32)

  batches = training.make_batches(config, job.inputs, model, base=training.Base(
      hidden=hidden, say=lambda states: np.full(
          (len(states), shapes.vocab_size), 1 / shapes.vocab_size,
          np.float32)))
  with record.stage('references', '', base=model.params):
    by_shape: dict[Any, int] = {}
    for tokens in rows:
      by_shape[tokens.shape] = by_shape.get(tokens.shape, 0) + 1
    for shape, calls in by_shape.items():
      packed = [jax.ShapeDtypeStruct(shape, jnp.int32)] * 3
      record.call('decoder.forward', training.base_states, shapes,
                  model.params, *packed, calls=calls)
    theta = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, jnp.float32, sharding=x.sharding), job_lib.gathered(job))
    held = {'base': model.params, 'slices': theta}
    grids = tuple(_grid(job, name, theta, held) for name in names)
    views = {'fp': model.params}
    if config.unlearn.quantizer_in_loop:
      views |= dict.fromkeys(names)  # Several are made at their steps.
      if len(names) == 1:
        record.then(**held, grids=grids, view=job_lib.matrices(job))
        views[names[0]] = job_lib.quantized(job, names[0])
  return batches, theta, grids, views


def _grid(
    job: job_lib.Job, name: str, theta: types.PyTree, held: dict[str, Any]
) -> quant.CodeGrid:
  """The code grid of the slices: a leaf's at a time, then its part of it."""
  config, scheme = job.config, quant.find(name).ordinary()
  flat = tree_paths.flatten(job.model.params)
  for leaf in tree_paths.flatten(theta):
    job.recorder.then(**held)
    shared = job.recorder.call(
        f'code grid of {leaf}', make_grids.leaf_shared, flat[leaf], scheme,
        model_layout.MATRICES[leaf], jnp.dtype(config.export_dtype))
    job.recorder.then(**held, shared=shared)
  made = jax.eval_shape(lambda params, index: edits.circuit_grid(
      params, scheme, model_layout.block_layout(job.model.config), index,
      jnp.dtype(config.export_dtype)), job.model.params, job.index)
  return _placed_like(made, theta)


def _placed_like(tree: types.PyTree, theta: types.PyTree) -> types.PyTree:
  """Shapes placed as the slices of their shape are; others are whole."""
  places = {x.shape: x.sharding for x in jax.tree.leaves(theta)}
  whole = jax.sharding.NamedSharding(
      next(iter(places.values())).mesh, jax.sharding.PartitionSpec())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=places.get(x.shape, whole)), tree)


def _edit(job: job_lib.Job, theta, grids, views) -> edits.Edit:
  """The edit on shapes; its views only have names."""
  start, _ = job.circuit.span
  forward, unembed = edits.functions(job.model.config, start)
  none = loop.View(frozen=lambda: None)
  return edits.Edit(
      theta=theta, grids=grids, base=job.frozen,
      views=dict.fromkeys(views, none), forward=forward, unembed=unembed,
      merge=lambda slices: slices)


def _quantized_views(
    job: job_lib.Job, views: dict[str, Any]) -> dict[str, Any]:
  """Those that are kept."""
  return {f'view under {name}': job_lib.matrices(job, view)
          for name, view in views.items() if name != 'fp' and view}


def _fisher(
    job: job_lib.Job, batches, theta, grids, views) -> types.PyTree | None:
  config, record = job.config, job.recorder
  if config.edit.projection == 'none':
    return None
  edit = _edit(job, theta, grids, views)
  spans = training.fisher_spans(config, batches)
  chunk = training.fisher_chunk(config, theta)
  count = -(-spans.length.size // chunk) * chunk
  examples = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), spans)
  with record.stage(
      'fisher', '--fisher_chunk, --circuit_budget', base=job.frozen,
      slices=theta, grids=grids, **_quantized_views(job, views)):
    return record.call(
        'fisher.sum_of_squares', fisher_lib.sum_of_squares,
        training.log_prob_of(edit), theta, job.frozen, examples,
        jax.ShapeDtypeStruct((count,), jnp.float32), chunk=chunk)


def _unlearn(job: job_lib.Job, batches, theta, grids, views, fisher) -> None:
  config, record = job.config, job.recorder
  edit = _edit(job, theta, grids, views)
  state = _placed_like(jax.eval_shape(
      lambda theta, grids, fisher: edits.make_transform(
          config, dataclasses.replace(edit, grids=grids), fisher).init(theta),
      theta, grids, fisher), theta)
  carry = theta, state
  problem = training.make_problem(config, edit, fisher)
  step = loop.make_step(problem, jax.tree.map(lambda x: x.sharding, carry))
  batch = recorder_lib.shapes_of(batches(0))
  steps = config.unlearn.steps
  held = {'base': job.frozen, 'slices_before': theta, 'grids': grids,
          'fisher': fisher, **_quantized_views(job, views)}
  with record.stage(
      'unlearn', '--circuit_budget, --unlearn_forget_batch,'
      ' --unlearn_retain_batch, --unlearn_text_batch', **held,
      slices_and_optimizer=carry):
    for name, view in views.items():
      share = config.unlearn.fp_steps if name == 'fp' else 1
      calls = round(steps * share / len(problem.views))
      if view is None:
        record.then(**held, slices_and_optimizer=carry,
                    view=job_lib.matrices(job))
        view = job_lib.quantized(job, name, calls)
        record.then(**held, slices_and_optimizer=carry,
                    view=job_lib.matrices(job, view))
      seen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=x.sharding), theta)
      record.call(
          f'step at {name}', step, carry, seen, job.frozen | {'params': view},
          job.frozen, theta, batch, calls=calls)
    record.then(**held, slices=theta)
    spans = retain_kl.batches_of(training.fisher_spans(config, batches))
    record.call(
        'retain_kl', retain_kl.program(edit), theta, job.frozen,
        recorder_lib.shapes_of(spans[0]), calls=len(spans))
    record.then(base=job.model.params, slices=theta,
                unlearned=job_lib.matrices(job))
    job_lib.scattered(job, theta)
  with record.stage(
      'export', base=job.model.params, unlearned=job_lib.matrices(job)):
    for leaf, x in job_lib.matrices(job).items():
      record.call(f'layer of {leaf}', assemble.take_layer, x,
                  jax.ShapeDtypeStruct((), jnp.int32), calls=x.shape[0])
