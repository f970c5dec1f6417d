"""References -> Fisher -> loop -> the exported unlearned model."""

from __future__ import annotations

from collections.abc import Callable
import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.data import splits as splits_lib
from mansu_jax.models.io import edit_file
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import preemption
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.prepare import quantizer_rules
from mansu_jax.stages.train import closed_forms
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import probe
from mansu_jax.stages.train import retain_kl
from mansu_jax.stages.train import saliency
from mansu_jax.stages.train import settings as settings_lib
from mansu_jax.stages.train import training
from mansu_jax.stages.train import whole_edits
from mansu_jax.unlearn import loop

Settings = settings_lib.Settings


class Trained(NamedTuple):
  """What the record says about training."""

  history: dict[str, np.ndarray]  # From `training.unlearn`.
  retain_kl: dict[str, Any]  # From `retain_kl.measure`.
  swapped: dict[str, int] | None  # Counts from `swapped_subjects.spans`.
  trained: dict[str, Any]  # From `edits.describe`, and `most_steps`.


def run(
    settings: Settings, splits: splits_lib.Splits, model: loading.LoadedModel,
    found: attribution.Found, mover: int | None, folder: pathlib.Path,
    clock: clock_lib.Clock, cache: checkpoints.StageCache
) -> tuple[types.Params, Trained]:
  """Unlearns the forget set by training the circuit, and exports the model.

  Training data, optimizer state and views are freed before the unlearned model
  is made; its trained slices are freed on return.

  Args:
    settings: Options of training.
    splits: Questions and texts to train on.
    model: The base.
    found: The circuit.
    mover: The mover layer, or None if it is not known.
    folder: Folder of the exported model.
    clock: Clock of the run, for `references`, `fisher`, `unlearn` and `export`.
    cache: Cache of finished stages.

  Returns:
    The full params after unlearning, and the report on training.

  Raises:
    ValueError: The loop diverged.
  """
  merge, trained = _train(
      settings, splits, model, found, mover, clock, cache)
  with clock.stage('export'):
    unlearned = merge()
    hf_io.write(folder, model.config, unlearned, model.tokenizer,
                export_dtype=settings.export_dtype,
                shard_gb=settings.export_shard_gb,
                generation=model.generation, carried=model.carried)
    edit_file.write(
        folder.with_name('edit.safetensors'), model.config, model.params,
        unlearned, settings.export_dtype)
  return unlearned, trained


def _train(
    settings: Settings, splits: splits_lib.Splits, model: loading.LoadedModel,
    found: attribution.Found, mover: int | None, clock: clock_lib.Clock,
    cache: checkpoints.StageCache
) -> tuple[Callable[[], types.Params], Trained]:
  """`() -> full unlearned params`, and the report on training."""
  mover = None if settings.all_weights else edits.routed_layer(
      settings.unlearn, found.circuit, mover)
  with clock.stage('references'):
    batches = pools.make_batches(
        settings.unlearn, settings.data, splits, model, seed=settings.seed,
        routed=mover is not None, cache=cache)
    edit = _make_edit(settings, model, found, mover)
    edit = saliency.restrict(
        settings.unlearn, edit, training.with_margins(
            settings.unlearn, edit, batches), cache)
    tokens = settings.closed_form and closed_forms.make_tokens(
        settings, splits, model.tokenizer, batches)
  with clock.stage('fisher'):
    spans, fisher = training.fisher_spans(
        settings.fisher, batches, seed=settings.seed), None
    if edit.grids and settings.edit.projection != 'none':
      fisher = training.circuit_fisher(
          settings.fisher, edit, spans, seed=settings.seed, cache=cache)
  with clock.stage('unlearn'):
    with preemption.deferred(), cache.steps(
        'unlearn_steps', settings.unlearn.save_every) as steps:
      run_loop = lambda: training.unlearn(
          settings.unlearn, settings.edit, edit, fisher, batches, keep=steps,
          total_weights=tree_paths.count(model.params),
          probe=_probe(settings, splits, model, edit))
      if settings.closed_form:
        run_loop = lambda: closed_forms.run(
            settings, model, edit, tokens, batches,
            probe=_probe(settings, splits, model, edit))
      done = cache.get_or_compute('unlearn', run_loop, replaces='unlearn_steps')
    theta = done['theta']
    if settings.unlearn.loss == 'task_vector':
      theta = whole_edits.subtract(settings.unlearn, edit, theta)
    if not settings.unlearn.lora_rank:  # Merging rounds the sums instead.
      theta = hf_io.as_stored(theta, settings.export_dtype)
    kl = retain_kl.measure(edit, fisher, spans, done['history'], theta)
  trained = dict(edit.report)
  if not settings.closed_form:
    trained['most_steps'] = settings.unlearn.steps
  return functools.partial(edit.merge, theta), Trained(
      done['history'], kl, batches.swapped_report, trained)


def _probe(
    settings: Settings, splits: splits_lib.Splits, model: loading.LoadedModel,
    edit: edits.Edit) -> loop.Probe | None:
  """What looks at forgetting during training; None without."""
  options = settings.unlearn
  questions = probe.of_run(
      options, splits.forget_train, model.tokenizer, chat=settings.data.chat,
      seed=settings.seed)
  return questions and loop.Probe(
      measure=probe.measure(edit, questions), every=probe.every(options),
      at_most=options.stop_forget or None, chance=questions.chance)


def _make_edit(
    settings: Settings, model: loading.LoadedModel, found: attribution.Found,
    mover: int | None) -> edits.Edit:
  """The trained weights: the circuit's, all, adapters, or some matrices."""
  names = quantizer_rules.with_fixed_grid(settings.quant_schemes)
  if settings.closed_form:
    return closed_forms.make_edit(
        model, settings.unlearn.edited_layers(model.config.num_layers))
  if settings.all_weights:
    return whole_edits.make(
        model, settings.unlearn, seed=settings.seed,
        scheme_names=names if settings.unlearn.quantizer_in_loop else ())
  return edits.circuit_edit(
      model, found.circuit, names,
      quantized_views=settings.unlearn.quantizer_in_loop,
      storage_dtype=settings.export_dtype, movable=found.movable, mover=mover)
