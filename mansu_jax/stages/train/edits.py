"""What is trained and how the model sees it: on a circuit, or everywhere.

The circuit edit lifts the circuit's weights out of a frozen model: gradients,
Fisher, latent and optimizer state exist for the slices only.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import quant
from mansu_jax import transforms
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.config import run as run_config
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layout as model_layout
from mansu_jax.quant import leaves
from mansu_jax.stages.judge import quantizers
from mansu_jax.unlearn import loop


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
  """A trainable part of a model.

  Attributes:
    theta: what is trained.
    grids: a code grid over theta for each scheme; empty where all weights are
      trained.
    base: the frozen pytree in full precision.
    views: by name, `fp` first.
    forward: `(theta, frozen, tokens, positions, segments) -> hidden [B, T, D]`.
    unembed: `(theta, frozen, hidden) -> logits`; theta None: the frozen one's.
    merge: `theta -> full params` in the base's dtypes.
    movable: a tree like theta, which of it may move; None: all.
  """

  theta: types.PyTree
  grids: tuple[quant.CodeGrid, ...]
  base: types.PyTree
  views: dict[str, loop.View]
  forward: Callable[..., types.Array]
  unembed: Callable[..., types.Array]
  merge: Callable[[types.PyTree], types.Params]
  movable: types.PyTree | None = None


@jax.jit
def codes_changed(
    grid: quant.CodeGrid, theta_0: types.PyTree, theta: types.PyTree
) -> types.Array:
  """How many weights have another code, with the scales of theta_0."""
  return sum(jnp.sum(x) for x in jax.tree.leaves(grid.changes(theta, theta_0)))


# The grid is an argument: a program must not keep it.
@functools.partial(jax.jit, static_argnames='dtype')
def _see_quantized(grid, theta, *, dtype):
  """As a quantized model in `dtype` holds them, which decodes into it."""
  return jax.tree.map(
      lambda x: leaves.cast(x, dtype).astype(x.dtype) if dtype != x.dtype
      else x, grid.decode_nearest(theta))


_copy = jax.jit(lambda theta: jax.tree.map(jnp.copy, theta))


def circuit_grid(
    params: types.Params, scheme: str | quant.Scheme, layout: types.PyTree,
    index: param_mask.CircuitIndex, storage_dtype: Any) -> quant.CodeGrid:
  """The code grid of theta_0 at the circuit's slices.

  Args:
    params: the full ones.
    scheme: as of `quant.code_grid`, and so `layout` and `storage_dtype`.
    layout: of the full params.
    index: from `param_mask.make_index`.
    storage_dtype: of the exported weights.
  """
  grid = quant.code_grid(
      param_mask.only_owned(params, index), scheme,
      param_mask.only_owned(layout, index), storage_dtype=storage_dtype)
  return grid.map_leaves(
      lambda name, leaf: param_mask.gather_grid(name, leaf, index))


def circuit_edit(
    model: Any, circuit: graph.Circuit, scheme_names: tuple[str, ...],
    *, quantized_views: bool, storage_dtype: Any = jnp.float32,
    movable: dict[str, np.ndarray] | None = None) -> Edit:
  """Trains the circuit's slices in a frozen model.

  Args:
    model: a `models.loading.LoadedModel`.
    circuit: the weights that may change.
    scheme_names: quantizers that the edit must survive.
    quantized_views: also give a view of the model under each quantizer.
    storage_dtype: of the exported weights, which decides their codes.
    movable: by leaf name [L, nodes], where a node's weights may not all move.
  """
  config, params = model.config, model.params
  index = param_mask.make_index(circuit)
  layout = model_layout.block_layout(config)
  replacement_masks, (start, _) = param_mask.make_replacement_masks(circuit), circuit.span
  theta = _float32(param_mask.gather(params, index))
  grids = tuple(
      circuit_grid(params, name, layout, index, storage_dtype)
      for name in scheme_names)

  frozen = lambda full: {'params': full, 'index': index, 'replacement_masks': replacement_masks}
  base = frozen(params)
  views = {'fp': loop.View(frozen=lambda: base, quantize=_copy)}
  if quantized_views:
    kept = len(scheme_names) == 1  # Else a whole model for each.
    for name, grid in zip(scheme_names, grids):
      full = _quantized_model(params, layout, name, kept=kept)
      views[name] = loop.View(
          frozen=lambda full=full: frozen(full()),
          quantize=functools.partial(
              _see_quantized, grid, dtype=params['embed'].dtype))

  forward, unembed = functions(config, start)
  merge = lambda slices: param_mask.scatter(params, index, slices)
  return Edit(
      theta=theta, grids=grids, base=base, views=views, forward=forward,
      unembed=unembed, merge=merge,
      movable=movable and param_mask.slice_mask(movable, index))


def functions(
    config: model_config.ModelConfig, start: int
) -> tuple[Callable[..., types.Array], Callable[..., types.Array]]:
  """`forward` and `unembed` of an `Edit` of a circuit.

  Args:
    config: the model's.
    start: first layer of the circuit.
  """
  def forward(slices, frozen, tokens, positions=None, segments=None):
    lifted = param_mask.collection(
        slices, frozen['index'], frozen['replacement_masks'])
    return decoder.forward(
        config, frozen['params'], tokens, positions=positions,
        segments=segments, circuit=lifted, circuit_start=start,
        remat=True)

  def unembed(slices, frozen, hidden):
    del slices  # The embedding is never part of a circuit.
    return decoder.unembed(frozen['params'], hidden)

  return forward, unembed


def _quantized_model(
    params: types.Params, layout: types.PyTree, name: str, *, kept: bool
) -> Callable[[], types.Params]:
  """`() -> the model under a quantizer`: kept, or made anew at each call."""
  make = functools.partial(quant.fake_quantize, params, name, layout)
  if not kept:
    return make
  full = make()
  return lambda: full


def full_edit(model: Any) -> Edit:
  """Trains every weight: the setting of the baselines."""
  config, params = model.config, model.params
  base = {'params': params}
  pick = lambda theta, frozen: frozen['params'] if theta is None else theta
  return Edit(
      theta=_float32(params), grids=(), base=base,
      views={'fp': loop.View(frozen=lambda: base)},
      forward=lambda theta, frozen, tokens, positions=None, segments=None: (
          decoder.forward(config, theta, tokens, positions=positions,
                          segments=segments, remat=True)),
      unembed=lambda theta, frozen, hidden: decoder.unembed(
          pick(theta, frozen), hidden),
      merge=lambda theta: jax.tree.map(
          lambda x, like: _cast(x, like.dtype), theta, params))


def _float32(tree: types.PyTree) -> types.PyTree:
  """What is trained is float32, whatever the base is held in."""
  return jax.tree.map(lambda x: _cast(x, jnp.float32), tree)


def _cast(x: types.Array, dtype: Any) -> types.Array:
  return x if x.dtype == dtype else x.astype(dtype)


def make(
    config: run_config.RunConfig, model: Any,
    circuit: graph.Circuit | None,
    movable: dict[str, np.ndarray] | None = None) -> Edit:
  """The edit that a run asks for; `movable` as in `circuit_edit`."""
  if config.circuit.selection == 'all':
    return full_edit(model)
  return circuit_edit(
      model, circuit, quantizers.held(config.quant_schemes),
      quantized_views=config.unlearn.quantizer_in_loop,
      storage_dtype=jnp.dtype(config.export_dtype), movable=movable)


def optimizer(
    options: run_config.UnlearnConfig) -> optax.GradientTransformation:
  """Adam or LARS with a warmed-up cosine schedule.

  Adam gives every coordinate about the same step, whatever its gradient, so
  that behind the floor many codes change for little. LARS keeps the gradient's
  proportions within a leaf. A leaf holds a matrix of all layers here, so the
  trust ratio is one for all layers of a matrix, not one a layer.

  References:
    You et al., Large Batch Training of Convolutional Networks, 2017
    (arXiv 1708.03888)
  """
  warmup, steps = int(options.warmup * options.steps), max(options.steps, 2)
  if warmup:
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0, peak_value=options.learning_rate, warmup_steps=warmup,
        decay_steps=steps)
  else:
    schedule = optax.cosine_decay_schedule(options.learning_rate, steps)
  if options.optimizer == 'lars':
    return optax.lars(schedule, trust_coefficient=1.0, momentum=0.9)
  return optax.adam(schedule)


def make_transform(
    config: run_config.RunConfig, edit: Edit, fisher: types.PyTree | None
) -> optax.GradientTransformation:
  """The optax chain of a run (see `transforms.chain` for its order)."""
  inner = optimizer(config.unlearn)
  if not edit.grids:
    return inner
  return transforms.mansu(
      inner, circuit_mask=edit.movable, fisher=fisher,
      quantile=config.edit.fisher_quantile, grids=edit.grids,
      mode=config.edit.floor, landing=config.edit.landing,
      lift_step=config.unlearn.steps, keep_origin=False,
      storage_dtype=jnp.dtype(config.export_dtype))
