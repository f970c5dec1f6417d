"""Edits of the whole model: every weight, or LoRA adapters of its matrices."""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models import lora
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.stages.train import edits
from mansu_jax.unlearn import loop


def make(
    model: loading.LoadedModel, options: run_config.UnlearnConfig, *,
    seed: int, scheme_names: Sequence[str] = ()) -> edits.Edit:
  """The edit that the options ask for.

  Args:
    model: the base.
    options: rank and scale of adapters, and dtype of the weights.
    seed: of the adapters.
    scheme_names: quantizers in the loop, without adapters.
  """
  if options.lora_rank:
    return lora_edit(
        model, options.lora_rank, options.lora_alpha, seed=seed)
  return full_edit(
      model, options.weights_dtype, trained_part(model.config, options),
      scheme_names)


def trained_part(
    config: model_config.ModelConfig, options: run_config.UnlearnConfig
) -> types.PyTree | None:
  """Which weights are trained: bools that broadcast to them; None: all.

  Raises:
    ValueError: the model lacks the layers.
  """
  first, end = options.trained_layers(config.num_layers)
  if not options.trains_a_part:
    return None

  def of_leaf(name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    *_, short = name.split('/')
    if not name.startswith('layers/') or options.matrices and (
        name not in layout.MATRICES or short not in options.matrices):
      return np.zeros((), bool)
    layers = np.arange(config.num_layers)
    return ((first <= layers) & (layers < end)).reshape(
        -1, *[1] * (leaf.ndim - 1))

  return tree_paths.map_named(of_leaf, decoder.abstract(config))


def full_edit(
    model: loading.LoadedModel, dtype: Any = 'float32',
    movable: types.PyTree | None = None,
    scheme_names: Sequence[str] = ()) -> edits.Edit:
  """Trains every weight.

  Args:
    model: the base. The references of the losses are its own, unrounded.
    dtype: in which the weights are stored between steps. In bfloat16, theta_0
      is the base rounded to the nearest bfloat16.
    movable: from `trained_part`.
    scheme_names: adds a view of the model under each quantizer.
  """
  params, dtype = model.params, jnp.dtype(dtype)
  theta = jax.tree.map(lambda x: edits.cast(x, dtype), params)
  more = {}
  if dtype != jnp.float32:
    more = {'theta_0': f'the base rounded to {dtype.name}',
            'base_rounded': _share_that_differs(params, theta)}
  if movable is not None:
    more['movable'] = edits.count_movable(movable, theta)
  forward, unembed = full_functions(model.config)
  base = {'params': params}
  return edits.Edit(
      theta=theta, grids=(), base=base,
      views={'fp': loop.View(frozen=lambda: base)} | {
          name: loop.View(frozen=lambda: base, quantize=functools.partial(
              _quantized, layout.block_layout(model.config), name))
          for name in scheme_names},
      forward=forward, unembed=unembed,
      merge=lambda theta: jax.tree.map(
          lambda x, like: edits.cast(x, like.dtype), theta, params),
      movable=movable, report=edits.describe('all', theta, **more))


def _quantized(
    block_layout: types.PyTree, name: str, theta: types.PyTree
) -> types.PyTree:
  """Decoded values under a quantizer, float32 in new buffers."""
  found = quant.fake_quantize(theta, name, block_layout)
  return jax.tree.map(
      lambda new, old: jnp.array(new, jnp.float32, copy=new is old), found,
      theta)


def _share_that_differs(params: types.Params, theta: types.PyTree) -> float:
  """Share of the weights that theta holds with another value."""
  differ = jax.tree.map(
      lambda a, b: jnp.sum(a.astype(jnp.float32) != b.astype(jnp.float32)),
      params, theta)
  return sum(map(int, jax.tree.leaves(differ))) / tree_paths.count(params)


def full_functions(config: model_config.ModelConfig) -> tuple[Any, Any]:
  """`forward` and `unembed` of the `Edit` of every weight."""
  def forward(theta, frozen, tokens, positions=None, segments=None,
              tap=None):
    del frozen  # It holds the base for references only.
    return decoder.forward(
        config, theta, tokens, positions=positions, segments=segments, tap=tap,
        remat=True)

  def unembed(theta, frozen, hidden):
    return decoder.unembed(
        config, frozen['params'] if theta is None else theta, hidden)

  return forward, unembed


def lora_edit(
    model: loading.LoadedModel, rank: int, alpha: float, *, seed: int
) -> edits.Edit:
  """Trains LoRA adapters in a frozen model; see `models.lora`.

  Gradients and optimizer state exist for the adapters only.

  Args:
    model: the base.
    rank: of the adapters.
    alpha: the adapters' products are scaled by alpha / rank.
    seed: of the adapters.
  """
  params, scale = model.params, alpha / rank
  theta, base = lora.init(params, rank, seed), {'params': params}
  forward, unembed = lora_functions(model.config, scale)
  return edits.Edit(
      theta=theta, grids=(), base=base,
      views={'fp': loop.View(frozen=lambda: base)},
      forward=forward, unembed=unembed,
      merge=functools.partial(_merge, params, scale),
      report=edits.describe('lora', theta, rank=rank, alpha=alpha))


def subtract(
    options: run_config.UnlearnConfig, edit: edits.Edit, theta: types.PyTree
) -> types.PyTree:
  """theta_0 - scale (theta - theta_0), the edit by a task vector.

  Args:
    options: rank of adapters, and `task_vector_scale`.
    edit: of every weight, or of adapters.
    theta: its trained weights.
  """
  scale = options.task_vector_scale
  if options.lora_rank:  # At theta_0 the products a @ b are 0.
    return tree_paths.map_named(
        lambda name, x: -scale * x if name.endswith('/b') else x, theta)
  return jax.tree.map(
      lambda before, after: (before - scale * (after - before)).astype(
          after.dtype), edit.theta, theta)


def _merge(
    params: types.Params, scale: float, adapters: types.PyTree
) -> types.Params:
  """The merged weights, rounded once to the base's dtypes.

  Raises:
    ValueError: a weight overflows in the base's dtype.
  """
  merged = lora.merge(params, adapters, scale, 'float32')
  merged = hf_io.as_stored(merged, params['embed'].dtype.name)
  return jax.tree.map(
      lambda x, like: edits.cast(x, like.dtype), merged, params)


def lora_functions(
    config: model_config.ModelConfig, scale: float) -> tuple[Any, Any]:
  """`forward` and `unembed` of the `Edit` of adapters."""
  def forward(theta, frozen, tokens, positions=None, segments=None,
              tap=None):
    return decoder.forward(
        config, frozen['params'], tokens, positions=positions,
        segments=segments, adapters=theta, adapter_scale=scale, tap=tap,
        remat=True)

  def unembed(theta, frozen, hidden):
    del theta  # The embedding has no adapter.
    return decoder.unembed(config, frozen['params'], hidden)

  return forward, unembed
