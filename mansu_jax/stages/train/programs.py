"""The programs that train a circuit or the model (see `runtime.programs`).

The run's own code reads and packs the data, so that rows and batches have the
run's shapes. Reference states are zeros: their values change no shape.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.data import splits as splits_lib
from mansu_jax.models import assemble
from mansu_jax.models import layout as model_layout
from mansu_jax.models import lora
from mansu_jax.models import programs as model_programs
from mansu_jax.quant import make_grids
from mansu_jax.quant import simulate
from mansu_jax.runtime import programs
from mansu_jax.stages.circuit import programs as circuit_programs
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.prepare import generating
from mansu_jax.stages.prepare import quantizer_rules
from mansu_jax.stages.train import closed_form_programs
from mansu_jax.stages.train import closed_forms
from mansu_jax.stages.train import counted_base
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import probe as probe_lib
from mansu_jax.stages.train import retain_kl
from mansu_jax.stages.train import saliency
from mansu_jax.stages.train import settings as settings_lib
from mansu_jax.stages.train import training
from mansu_jax.stages.train import whole_edits
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import fisher as fisher_lib
from mansu_jax.unlearn import loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """The shapes that the stage `references` leaves for the next ones.

  Attributes:
    batches: of the run; reference states are zeros.
    edit: the edit; its views only have names.
    views: full params by view; None where each step quantizes them anew.
    whole: whether all weights or adapters are trained, not a circuit.
    probe: the questions that stop training early, or None.
    tokens: what a closed form reads, or None.
  """

  batches: batches_lib.Batches
  edit: edits.Edit
  views: dict[str, types.Params | None]
  whole: bool
  probe: probe_lib.Probe | None
  tokens: closed_forms.Tokens | None = None

  def sized(self, tree: types.PyTree) -> types.PyTree:
    """Marks a tree whose size grows with the circuit, if one is trained."""
    return tree if self.whole else programs.CircuitSized(tree)

  @property
  def quantized_views(self) -> dict[str, types.Params]:
    """The matrices of the quantized views that stay on the devices."""
    return {f'view under {name}': model_programs.matrices(view)
            for name, view in self.views.items() if name != 'fp' and view}


def references(
    model: abstract.AbstractModel, settings: settings_lib.Settings,
    splits: splits_lib.Splits, mover: int | None = None) -> programs.Programs:
  """Reference states, trained weights, code grids and quantized view.

  Returns `Prepared`.

  Args:
    model: the base.
    settings: the stage's settings.
    splits: questions and texts to train on.
    mover: the mover layer.
  """
  mover = None if settings.all_weights else edits.routed_layer(
      settings.unlearn, model.circuit, mover)
  names = quantizer_rules.with_fixed_grid(settings.quant_schemes)
  base = counted_base.CountedBase(model.config)
  batches = pools.make_batches(
      settings.unlearn, settings.data, splits, model.loaded,
      seed=settings.seed, reference=base.reference(), routed=mover is not None)
  yield programs.hold(base=model.params)
  yield from generating.programs_of(
      model, base.written, settings.unlearn.swapped_continuation, models=1)
  for shape, calls in base.rows.items():
    packed = [jax.ShapeDtypeStruct(shape, jnp.int32)] * 3
    yield programs.program(
        'decoder.forward', pools.base_states, model.config, model.params,
        *packed, calls=calls)
  if base.slices_of_logits:
    yield programs.program(
        'token_nll', pools.token_nll, model.config, model.params,
        jax.ShapeDtypeStruct(
            (pools.LOGITS, model.config.d_model), jnp.float32),
        jax.ShapeDtypeStruct((pools.LOGITS,), jnp.int32),
        calls=base.slices_of_logits)
  probe = probe_lib.of_run(
      settings.unlearn, splits.forget_train, model.tokenizer,
      chat=settings.data.chat, seed=settings.seed)
  if settings.closed_form:
    edit = closed_form_programs.make_edit(model, settings)
    yield programs.hold(base=model.params, edited=edit.theta)
    return Prepared(
        batches=batches, views={'fp': model.params}, edit=edit, whole=True,
        probe=probe, tokens=closed_forms.make_tokens(
            settings, splits, model.tokenizer, batches))
  if settings.all_weights:
    views = dict.fromkeys(['fp', *(
        names if settings.unlearn.quantizer_in_loop else ())])
    edit = _whole_edit(model, settings, views)
    yield programs.hold(base=model.params, trained_weights=edit.theta)
    if settings.unlearn.saliency:
      total = saliency.matrices(edit.theta)
      total = programs.like(jax.eval_shape(loop.float32, total), total)
      yield programs.program(
          'forget gradient', saliency.program(settings.unlearn, edit), total,
          edit.theta, edit.base, programs.shapes_of(training.with_margins(
              settings.unlearn, edit, batches)(0)), calls=saliency.BATCHES)
      yield programs.program('norms of it', saliency.norms_of, total)
    return Prepared(batches=batches, views=views | {'fp': model.params},
                    edit=edit, whole=True, probe=probe)
  slices = yield from circuit_programs.gather(model)
  theta = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, jnp.float32, sharding=x.sharding), slices)
  held = {'base': model.params, 'slices': programs.CircuitSized(theta)}
  grids = []
  for name in names:
    grids.append((yield from _grid(
        model, name, settings.export_dtype, theta,
        held | {'grids': programs.CircuitSized(tuple(grids))})))
  views = {'fp': model.params}
  if settings.unlearn.quantizer_in_loop:
    views |= dict.fromkeys(names)
    if len(names) == 1:
      yield programs.hold(
          **held, grids=programs.CircuitSized(grids),
          view=model_programs.matrices(model.params))
      views[names[0]] = yield from model_programs.quantize(
          model.params, names[0])
  return Prepared(
      batches=batches, views=views, edit=_edit(
          model, settings.export_dtype, theta, tuple(grids), views, mover),
      whole=False, probe=probe)


def _grid(
    model: abstract.AbstractModel, name: str, export_dtype: str,
    theta: types.PyTree, held: dict[str, Any]) -> programs.Programs:
  """The code grid of whole leaves, then of the slices; returns its shapes."""
  scheme, dtype = quant.find(name).ordinary(), jnp.dtype(export_dtype)
  flat, shared = tree_paths.flatten(model.params), {}
  for leaf in tree_paths.flatten(theta):
    yield programs.program(
        f'blocks of {leaf}', simulate.any_extreme, flat[leaf])
  for leaf in tree_paths.flatten(theta):
    yield programs.hold(**held, shared=dict(shared))
    shared[leaf] = yield programs.program(
        f'code grid of {leaf}', make_grids.leaf_shared, flat[leaf], scheme,
        model_layout.MATRICES[leaf], dtype)
  yield programs.hold(**held, shared=shared)
  for leaf, parts in shared.items():
    yield from circuit_programs.gather_grid(model, leaf, parts)
  made = jax.eval_shape(lambda params, index: edits.circuit_grid(
      params, scheme, model_layout.block_layout(model.config), index,
      dtype), model.params, model.index)
  return programs.like(made, theta)


def _edit(
    model: abstract.AbstractModel, export_dtype: str, theta: types.PyTree,
    grids: tuple[Any, ...], views: dict[str, Any], mover: int | None
) -> edits.Edit:
  forward, unembed = edits.functions(
      model.config, model.circuit.span[0], mover)
  unused = loop.View(frozen=lambda: None)
  return edits.Edit(
      theta=theta, grids=grids, base=model.frozen,
      views=dict.fromkeys(views, unused), forward=forward, unembed=unembed,
      merge=lambda slices: slices, storage_dtype=jnp.dtype(export_dtype))


def _whole_edit(
    model: abstract.AbstractModel, settings: settings_lib.Settings,
    views: Iterable[str]) -> edits.Edit:
  """The edit of every weight, or of adapters; its weights are shapes."""
  options, dtype = settings.unlearn, jnp.dtype(settings.unlearn.weights_dtype)
  if options.lora_rank:
    theta = model.placer.replicate(
        lora.shapes(model.params, options.lora_rank))
    forward, unembed = whole_edits.lora_functions(
        model.config, options.lora_alpha / options.lora_rank)
  else:
    theta = jax.tree.map(
        lambda x: x if x.dtype == dtype else jax.ShapeDtypeStruct(
            x.shape, dtype, sharding=x.sharding), model.params)
    forward, unembed = whole_edits.full_functions(model.config)
  movable = None
  if options.saliency:  # Which matrices these are changes no program.
    movable = saliency.mask({
        name: np.ones(x.shape[0], bool)
        for name, x in saliency.matrices(theta).items()}, theta)
  elif not options.lora_rank:
    movable = whole_edits.trained_part(model.config, options)
  return edits.Edit(
      theta=theta, grids=(), base={'params': model.params},
      views=dict.fromkeys(views, loop.View(frozen=lambda: None)),
      forward=forward, unembed=unembed, merge=lambda theta: theta,
      movable=movable,
      storage_dtype=jnp.dtype(settings.export_dtype))


def fisher(
    model: abstract.AbstractModel, settings: settings_lib.Settings,
    prepared: Prepared) -> programs.Programs:
  """The Fisher diagonal, a tree of shapes like theta."""
  options, edit = settings.fisher, prepared.edit
  yield programs.lowered_by('--fisher_chunk', '--circuit_budget')
  yield programs.hold(
      base=model.frozen, slices=programs.CircuitSized(edit.theta),
      grids=programs.CircuitSized(edit.grids), **prepared.quantized_views)
  spans = _fisher_spans(settings, prepared)
  chunk = training.fisher_chunk(options, edit.theta)
  count = -(-spans.length.size // chunk) * chunk
  examples = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), spans)
  return (yield programs.program(
      'fisher.sum_of_squares', fisher_lib.sum_of_squares,
      training.log_prob_of(edit), edit.theta, model.frozen, examples,
      jax.ShapeDtypeStruct((count,), jnp.float32), chunk=chunk))


def _fisher_spans(
    settings: settings_lib.Settings, prepared: Prepared) -> batches_lib.Spans:
  return training.fisher_spans(
      settings.fisher, prepared.batches, seed=settings.seed)


def unlearn(
    model: abstract.AbstractModel, settings: settings_lib.Settings,
    prepared: Prepared, fisher_diagonal: types.PyTree | None
) -> programs.Programs:
  """The steps at every view, and the retain KL."""
  options, edit = settings.unlearn, prepared.edit
  if prepared.tokens is not None:
    yield from closed_form_programs.unlearn(
        model, settings, edit, prepared.tokens, prepared.batches,
        prepared.probe, _fisher_spans(settings, prepared))
    return
  theta = edit.theta
  state = programs.like(jax.eval_shape(
      lambda theta, grids, fisher: edits.make_transform(
          options, settings.edit, dataclasses.replace(edit, grids=grids),
          fisher).init(loop.float32(theta)), theta, edit.grids,
      fisher_diagonal), theta)
  carry = theta, state
  problem = training.make_problem(
      options, settings.edit, edit, fisher_diagonal)
  step = loop.make_step(problem, jax.tree.map(lambda x: x.sharding, carry))
  batch = programs.shapes_of(
      training.with_margins(options, edit, prepared.batches)(0))
  sized = prepared.sized
  held = {'base': edit.base, 'fisher': sized(fisher_diagonal),
          'grids': sized(edit.grids), **prepared.quantized_views}
  part = 'slices'
  if prepared.whole:
    part = 'adapters' if options.lora_rank else 'weights'
  of_base = set(map(id, jax.tree.leaves(model.params)))
  held[f'{part}_before'] = sized([
      x for x in jax.tree.leaves(theta) if id(x) not in of_base])
  smaller = {'slices': ['--circuit_budget'],
             'adapters': ['--unlearn_lora_rank']}
  yield programs.lowered_by(
      *smaller.get(part, ()), '--unlearn_forget_batch',
      '--unlearn_retain_batch', '--unlearn_text_batch')
  trained = {f'{part}_and_optimizer': sized(carry)}
  yield programs.hold(**held, **trained)
  steps_at = collections.Counter(itertools.islice(
      itertools.cycle(training.view_schedule(options, edit)), options.steps))
  ends_early = prepared.probe is not None and bool(
      options.stop_forget or options.patience)
  rate = jax.ShapeDtypeStruct((), jnp.float32)
  for name, view in prepared.views.items():
    calls = steps_at[name]
    seen = None if prepared.whole else jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=x.sharding), theta)
    if view is None and prepared.whole:
      twice = 1 + options.quantized_reference  # For the references as well.
      yield programs.hold(
          **held, **trained, quantized_weights=programs.like(jax.eval_shape(
              loop.float32, theta), theta))
      seen = yield from model_programs.quantize(
          theta, name, calls=twice * calls)
      seen = programs.like(jax.eval_shape(loop.float32, seen), theta)
      view = model.params
    elif view is None:
      view = yield from _quantized_anew(
          model, name, calls, held | trained)
    frozen = edit.base | {'params': view}
    if options.quantized_reference and name != 'fp':
      yield programs.program(
          f'references at {name}', training.reference_program(edit), seen,
          frozen, *training.reference_inputs(batch), calls=calls,
          at_most=ends_early)
    yield programs.program(
        f'step at {name}', step, carry, seen, frozen, edit.base, theta, batch,
        rate, calls=calls, at_most=ends_early)
  if prepared.probe is not None:
    yield programs.program(
        'probe', probe_lib.program(edit), carry[0], edit.base,
        programs.shapes_of(prepared.probe),
        calls=1 + -(-options.steps // probe_lib.every(options)),
        at_most=ends_early)
  yield programs.hold(**held, **{part: sized(theta)})
  spans = retain_kl.batches_of(_fisher_spans(settings, prepared))
  yield programs.program(
      'retain_kl', retain_kl.program(edit), theta, edit.base,
      programs.shapes_of(spans[0]), calls=len(spans))


def _quantized_anew(
    model: abstract.AbstractModel, name: str, calls: int, held: dict[str, Any]
) -> programs.Programs:
  """A view that its steps quantize again each time."""
  params = model.params
  yield programs.hold(**held, view=model_programs.matrices(params))
  view = yield from model_programs.quantize(params, name, calls=calls)
  yield programs.hold(**held, view=model_programs.matrices(view))
  return view


def export(
    model: abstract.AbstractModel, settings: settings_lib.Settings,
    prepared: Prepared) -> programs.Programs:
  """Merges the trained part into the base and takes layers for the files.

  The model's files hold the unlearned layers; the edit compares both.
  """
  theta = prepared.edit.theta
  yield programs.hold(
      base=model.params, unlearned=model_programs.matrices(model.params),
      trained=prepared.sized(theta))
  if not prepared.whole:
    yield from circuit_programs.scatter(model, theta)
  elif settings.closed_form:
    yield from closed_form_programs.merge(model, settings, theta)
  elif settings.unlearn.lora_rank:
    yield from model_programs.merge_adapters(
        model.params, theta, settings.unlearn.lora_alpha
        / settings.unlearn.lora_rank, 'float32')
  flat = tree_paths.flatten(model.params)
  trained = set(tree_paths.flatten(theta))
  if settings.unlearn.lora_rank:
    trained = model_layout.matrices_of(flat)
  for leaf, x in flat.items():
    if leaf.startswith('layers/'):
      takes = 2 + (leaf in trained)  # For the files; for the edit, both models.
      yield programs.program(
          f'layer of {leaf}', assemble.take_layer, x,
          jax.ShapeDtypeStruct((), jnp.int32), calls=takes * x.shape[0])
