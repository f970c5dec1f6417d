"""The programs of a closed form (see `runtime.programs`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import layout
from mansu_jax.runtime import programs
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.train import closed_forms
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import probe as probe_lib
from mansu_jax.stages.train import retain_kl
from mansu_jax.stages.train import settings as settings_lib
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import loop
from mansu_jax.unlearn.closed_forms import form as form_lib

_DOWN = 'layers/mlp/down'


def make_edit(
    model: abstract.AbstractModel, settings: settings_lib.Settings
) -> edits.Edit:
  """As `closed_forms.make_edit`; its weights are shapes."""
  layers = settings.unlearn.edited_layers(model.config.num_layers)
  _, *sizes = tree_paths.flatten(model.params)[_DOWN].shape
  down = jax.ShapeDtypeStruct((len(layers), *sizes), jnp.float32)
  forward, unembed = closed_forms.functions(model.config, layers)
  return edits.Edit(
      theta=tree_paths.unflatten({
          _DOWN: model.placer.shard(down, layout.AXES[_DOWN])}),
      grids=(), base={'params': model.params},
      views={'fp': loop.View(frozen=lambda: None)}, forward=forward,
      unembed=unembed, merge=lambda theta: theta)


def unlearn(
    model: abstract.AbstractModel, settings: settings_lib.Settings,
    edit: edits.Edit, tokens: closed_forms.Tokens,
    batches: batches_lib.Batches, probe: probe_lib.Probe | None,
    spans: batches_lib.Spans) -> programs.Programs:
  """The moments and the solution at each layer, and what is measured.

  Args:
    model: the base.
    settings: the stage's settings, of a closed form.
    edit: from `make_edit`.
    tokens: from `closed_forms.make_tokens`.
    batches: from `pools.make_batches`.
    probe: the questions that show what is forgotten, or None.
    spans: the retain sequences of the retain KL.
  """
  options, config = settings.unlearn, model.config
  theta, flat = edit.theta, tree_paths.flatten(model.params)
  moments = model.placer.replicate(jax.eval_shape(
      lambda: form_lib.zeros(tokens.cells, config.d_ff, config.d_model)))
  layers, params = options.edited_layers(config.num_layers), model.params
  yield programs.hold(
      base=model.params, edited=theta, solved=theta, moments=moments,
      model_with_lower_layers=flat[_DOWN] if len(layers) > 1 else ())
  for layer in layers:
    yield programs.program(
        f'moments of layer {layer}', closed_forms.measure, config, layer,
        tokens.cells, params, programs.shapes_of(tokens.rows), held=True)
    down, _ = yield programs.program(
        f'closed form of layer {layer}', closed_forms.solve,
        settings.closed_form, config, layer, params, moments,
        closed_forms.numbers(options))
    if layer != layers[-1]:
      yield programs.program(
          f'model with layer {layer}', closed_forms.put, (layer,), flat[_DOWN],
          down)
  yield programs.hold(base=model.params, edited=theta, solved=theta)
  yield programs.program(
      'metrics', closed_forms.metrics_program(options, edit), theta, edit.base,
      programs.shapes_of(batches(0)))
  if probe is not None:
    yield programs.program(
        'probe', probe_lib.program(edit), theta, edit.base,
        programs.shapes_of(probe))
  parts = retain_kl.batches_of(spans)
  yield programs.program(
      'retain_kl', retain_kl.program(edit), theta, edit.base,
      programs.shapes_of(parts[0]), calls=len(parts))


def merge(
    model: abstract.AbstractModel, settings: settings_lib.Settings,
    theta: types.PyTree) -> programs.Programs:
  """Puts the edited projections into the model."""
  down, new = (tree_paths.flatten(tree)[_DOWN]
               for tree in (model.params, theta))
  yield programs.program(
      'edited layers', closed_forms.put,
      settings.unlearn.edited_layers(model.config.num_layers), down, new)
