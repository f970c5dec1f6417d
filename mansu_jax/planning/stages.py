"""The stages of a run to unlearn, called on shapes: `pipeline` without arrays.

Data are read and packed by the run's own code, so that rows, batches and their
numbers are the run's. Only what the model would have said is made up: which
nodes are in the circuit (as many as the budget allows, drawn over its layers),
and reference states, whose values change no shape.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import config as run_config
from mansu_jax import fisher as fisher_lib
from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import edges as edges_lib
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import graph
from mansu_jax.circuits import lens
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import param_mask
from mansu_jax.circuits import select
from mansu_jax.models import layout as model_layout
from mansu_jax.models import loading
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import simulate
from mansu_jax.stages import attribution
from mansu_jax.stages import edits
from mansu_jax.stages import evaluation
from mansu_jax.stages import inputs as inputs_lib
from mansu_jax.stages import quantizers
from mansu_jax.stages import readability
from mansu_jax.stages import training
from mansu_jax.unlearn import loop

_COPIED_BACK = 11  # Circuits that `stages.erasure` copies back, about.
_PREFIXES = 12  # Prefixes that `Faithfulness.smallest_prefix` runs, about.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What is planned.

  Attributes:
    config: the run's.
    inputs: its data.
    model: with shapes for params, placed.
    circuit: as large as the run's.
    index: of it, and `frame`: shapes, whole on every device.
    recorder: keeps account.
  """

  config: run_config.RunConfig
  inputs: inputs_lib.Inputs
  model: loading.LoadedModel
  circuit: graph.Circuit
  index: param_mask.CircuitIndex
  frame: types.Params
  recorder: recorder_lib.Recorder

  @property
  def frozen(self) -> types.PyTree:
    """What a step does not train."""
    return {'params': self.model.params, 'index': self.index,
            'frame': self.frame}


def draw_circuit(config: run_config.RunConfig, shapes: Any) -> graph.Circuit:
  """A circuit of the run's size, from scores that are drawn by its seed.

  Of each kind of node the same share: scores are so many a weight.
  """
  rng, costs = np.random.default_rng(config.seed), graph.costs(shapes)
  return select.choose(config, shapes, {
      kind: costs[kind] * rng.normal(size=size)
      for kind, size in graph.shapes(shapes).items()})[1]


def plan(job: Job) -> None:
  """Goes through the run; the account is the recorder's."""
  params = job.model.params
  _attribution(job)
  batches, theta, grids, views = _references(job)
  fisher = _fisher(job, batches, theta, grids, views)
  _unlearn(job, batches, theta, grids, views, fisher)
  with job.recorder.stage(
      'export', base=params, slices=theta, **_quantized_views(job, views)):
    job.recorder.call(
        'scatter', jax.jit(param_mask.scatter), params, job.index, theta)
  _evaluate(job)
  _erasure(job)


def _scores(job: Job, pairs: Any, runs: int = 1) -> None:
  """Node scores of some pairs, by so many models."""
  if not pairs:
    return
  options = job.config.attribution
  batches = pair_batches.to_score(pairs, options.batch, job.model.config)
  job.recorder.call(
      'eap_ig.pair_scores', eap_ig.pair_scores, job.model.config,
      job.model.params, recorder_lib.shapes_of(batches[0]),
      calls=runs * len(batches), steps=options.steps)


def _forget_pairs(job: Job) -> Any:
  return attribution.forget_pairs(
      job.config, job.inputs.splits, job.model.tokenizer)


def _attribution(job: Job) -> None:
  """Scores, then random circuits and prefixes of the ranking."""
  config, model, record = job.config, job.model, job.recorder
  pairs = _forget_pairs(job)
  with record.stage(
      'attribution', '--attribution_batch, --circuit_pairs',
      base=model.params):
    _scores(job, pairs)
    if config.circuit.contrast:
      _scores(job, attribution.retain_pairs(
          config, job.inputs.splits, model.tokenizer))
    if config.attribution.level == 'edge':
      batches = pair_batches.pack(pairs, config.attribution.batch, alone=True)
      record.call(
          'edges.pair_scores', edges_lib.pair_scores, model.config,
          model.params, recorder_lib.shapes_of(batches[0]),
          calls=len(batches),
          points=edges_lib.eap_ig_points(config.attribution.steps))
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


def _references(job: Job) -> tuple[Any, ...]:
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
  view = {'view': _matrices(job)} if config.unlearn.quantizer_in_loop else {}
  with record.stage('references', '', base=model.params, **view):
    by_shape: dict[Any, int] = {}
    for tokens in rows:
      by_shape[tokens.shape] = by_shape.get(tokens.shape, 0) + 1
    for shape, calls in by_shape.items():
      packed = [jax.ShapeDtypeStruct(shape, jnp.int32)] * 3
      record.call('decoder.forward', training.base_states, shapes,
                  model.params, *packed, calls=calls)
    theta = record.call(
        'gather', jax.jit(_gather_float32), model.params, job.index)
    grids = tuple(_grid(job, name, theta) for name in names)
    views = {'fp': model.params}
    if config.unlearn.quantizer_in_loop:
      views |= {name: _quantized(job, name) for name in names}
  return batches, theta, grids, views


def _matrices(job: Job, params: types.Params | None = None) -> types.Params:
  """What one more model holds: all else it shares with the base."""
  flat = tree_paths.flatten(params or job.model.params)
  return {leaf: flat[leaf] for leaf in model_layout.MATRICES}


def _gather_float32(params, index):
  return jax.tree.map(
      lambda x: x.astype(jnp.float32), param_mask.gather(params, index))


def _grid(job: Job, name: str, theta: types.PyTree) -> quant.CodeGrid:
  """The code grid of the slices: a leaf's at a time, then its part of it."""
  config, scheme = job.config, quant.find(name).ordinary()
  flat = tree_paths.flatten(job.model.params)
  for leaf in tree_paths.flatten(theta):
    codes = job.recorder.call(
        f'code grid of {leaf}', grids_lib.leaf_codes, flat[leaf], scheme,
        model_layout.MATRICES[leaf], jnp.dtype(config.export_dtype))
    job.recorder.call(
        f'slices of {leaf}', _gather_codes(leaf), codes, job.index)
  made = jax.eval_shape(lambda params, index: quant.code_grid(
      param_mask.only_owned(params, index), name, param_mask.only_owned(
          model_layout.block_layout(job.model.config), index),
      storage_dtype=jnp.dtype(config.export_dtype),
      take=lambda leaf, x: param_mask.gather_leaf(leaf, x, index)),
                        job.model.params, job.index)
  return _placed_like(made, theta)


@functools.cache
def _gather_codes(leaf: str) -> Any:
  return jax.jit(lambda codes, index: jax.tree.map(
      lambda x: param_mask.gather_leaf(leaf, x, index), codes))


def _placed_like(tree: types.PyTree, theta: types.PyTree) -> types.PyTree:
  """Shapes placed as the slices of their shape are; others are whole."""
  places = {x.shape: x.sharding for x in jax.tree.leaves(theta)}
  whole = jax.sharding.NamedSharding(
      next(iter(places.values())).mesh, jax.sharding.PartitionSpec())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=places.get(x.shape, whole)), tree)


def _quantized(job: Job, name: str, calls: int = 1) -> types.Params:
  """The model under a quantizer, made leaf by leaf."""
  scheme, flat = quant.find(name), tree_paths.flatten(job.model.params)
  if not isinstance(scheme, quant.Scheme):  # Calibrated: of the same size.
    return job.model.params
  return tree_paths.unflatten(flat | {
      leaf: job.recorder.call(
          f'{name} of {leaf}', simulate.fake_quantize_leaf, flat[leaf],
          scheme.ordinary(), layout, calls=calls)
      for leaf, layout in model_layout.MATRICES.items()})


def _edit(job: Job, theta, grids, views) -> edits.Edit:
  """The edit on shapes; its views only have names."""
  start, _ = job.circuit.span
  forward, unembed = edits.functions(job.model.config, start)
  none = loop.View(frozen=lambda: None)
  return edits.Edit(
      theta=theta, grids=grids, base=job.frozen,
      views=dict.fromkeys(views, none), forward=forward, unembed=unembed,
      merge=lambda slices: slices)


def _quantized_views(job: Job, views: dict[str, Any]) -> dict[str, Any]:
  """Those that are kept: with several, each is made anew at its steps."""
  made = {f'view under {name}': _matrices(job, view)
          for name, view in views.items() if name != 'fp'}
  return dict([*made.items()][:1])


def _fisher(job: Job, batches, theta, grids, views) -> types.PyTree | None:
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


def _unlearn(job: Job, batches, theta, grids, views, fisher) -> None:
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
  with record.stage(
      'unlearn', '--circuit_budget, --unlearn_forget_batch,'
      ' --unlearn_retain_batch, --unlearn_text_batch', base=job.frozen,
      slices_before=theta, grids=grids, slices_and_optimizer=carry,
      fisher=fisher, **_quantized_views(job, views)):
    for name in views:
      seen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=x.sharding), theta)
      share = config.unlearn.fp_steps if name == 'fp' else 1
      record.call(
          f'step at {name}', step, carry, seen,
          job.frozen | {'params': views[name]}, job.frozen, theta, batch,
          calls=round(steps * share / len(problem.views)))


def _evaluate(job: Job) -> None:
  """Both models at every precision, on all questions and texts."""
  config, record, model = job.config, job.recorder, job.model
  evaluator = evaluation.Evaluator(config, job.inputs, model)
  with record.stage(
      'evaluate', '--eval_batch_tokens', base=model.params,
      unlearned=_matrices(job), quantized=_matrices(job)):
    for name in config.quant_schemes:
      _quantized(job, name, calls=2)
    precisions = 1 + len(config.quant_schemes)
    for call in evaluator.programs(model.params, job.circuit.span[0]):
      record.call('scoring', call.fn, *call.args, calls=(
          precisions * call.calls * (1 if call.shared else 2)))


def _erasure(job: Job) -> None:
  """Scores for CAD and AS-NC, and what a lens reads."""
  config, record, model = job.config, job.recorder, job.model
  schemes = len(config.quant_schemes)
  matrices = _matrices(job)
  with record.stage(
      'erasure', '--attribution_batch', base=model.params,
      unlearned=matrices, copied_back=matrices, quantized=matrices,
      control=matrices['layers/mlp/down']):
    if config.eval.cad_pairs:
      runs = 3 + 2 * schemes  # Base, edit, control; both quantized.
      few = lambda pairs: pairs[:config.eval.cad_pairs]
      _scores(job, few(_forget_pairs(job)), runs)
      _scores(job, few(attribution.retain_pairs(
          config, job.inputs.splits, model.tokenizer)), runs - 1)
    try:
      asked = readability.questions(config, job.inputs, model.tokenizer)
    except readability.NothingToRead:
      return
    batches = lens.batches_of(asked.fit + asked.prompts)
    record.call(
        'lens.at_ends', lens.at_ends, model.config, model.params,
        recorder_lib.shapes_of(batches[0].rows),
        recorder_lib.shapes_of(batches[0].ends),
        calls=len(batches) * 2 * (1 + schemes))
    rows, common = batches[0].rows, job.circuit.span[0]
    record.call(
        'lens.final', lens.final, model.config, model.params,
        jax.ShapeDtypeStruct(
            (*rows.tokens.shape, model.config.d_model), jnp.float32),
        recorder_lib.shapes_of(rows), recorder_lib.shapes_of(batches[0].ends),
        calls=len(batches) * _COPIED_BACK * (1 + schemes), common=common)
