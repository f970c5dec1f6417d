"""The trained weights and the model's views of them; the circuit's edit.

A circuit edit gathers the circuit's weights from a frozen model into slices:
gradients, Fisher, latent and optimizer state exist for the slices only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import quant
from mansu_jax import transforms
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.config import run as run_config
from mansu_jax.models import circuit_layers
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layout as model_layout
from mansu_jax.models.io import loading
from mansu_jax.quant import leaves
from mansu_jax.unlearn import loop


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
  """A trainable part of a model.

  Attributes:
    theta: the trained weights.
    grids: a code grid over theta for each scheme; empty if every weight or
      adapters are trained (`whole_edits`).
    base: the frozen pytree in full precision.
    views: `loop.View`s by name, `fp` first.
    forward: `(theta, frozen, tokens, positions, segments) -> hidden [B, T, D]`.
    unembed: `(theta, frozen, hidden) -> logits`; theta None uses the frozen
      embedding.
    merge: `theta -> full params` in the base's dtypes, as they are exported.
    storage_dtype: dtype of the exported weights, which decides their codes.
    movable: tree of bools like theta, False where a weight must stay; None
      lets all of them move.
    report: what the record says about theta.
  """

  theta: types.PyTree
  grids: tuple[quant.CodeGrid, ...]
  base: types.PyTree
  views: dict[str, loop.View]
  forward: Callable[..., types.Array]
  unembed: Callable[..., types.Array]
  merge: Callable[[types.PyTree], types.Params]
  storage_dtype: Any = jnp.float32
  movable: types.PyTree | None = None
  report: dict[str, Any] = dataclasses.field(default_factory=dict)


@jax.jit
def codes_changed(
    grid: quant.CodeGrid, theta_0: types.PyTree, theta: types.PyTree
) -> types.Array:
  """Number of weights whose code differs from theta_0's, at its scales."""
  return sum(jnp.sum(x) for x in jax.tree.leaves(grid.changes(theta, theta_0)))


# The grid is an argument, so that the compiled program does not keep it.
@functools.partial(jax.jit, static_argnames='dtype')
def _quantize(grid, theta, *, dtype):
  """Quantizes theta and decodes it, rounded to the model's `dtype`."""
  return jax.tree.map(
      lambda x: leaves.cast(x, dtype).astype(x.dtype) if dtype != x.dtype
      else x, grid.decode_nearest(theta))


_copy = jax.jit(lambda theta: jax.tree.map(jnp.copy, theta))


def circuit_grid(
    params: types.Params, scheme: str | quant.Scheme, layout: types.PyTree,
    index: param_mask.CircuitIndex, storage_dtype: Any) -> quant.CodeGrid:
  """The code grid of theta_0 at the circuit's slices.

  Args:
    params: full params.
    scheme: as in `quant.code_grid`.
    layout: block layout of the full params.
    index: from `param_mask.make_index`.
    storage_dtype: dtype of the exported weights.
  """
  grid = quant.code_grid(
      param_mask.only_owned(params, index), scheme,
      param_mask.only_owned(layout, index), storage_dtype=storage_dtype)
  return grid.map_leaves(
      lambda name, leaf: param_mask.gather_grid(name, leaf, index))


def circuit_edit(
    model: loading.LoadedModel, circuit: graph.Circuit,
    scheme_names: Sequence[str], *, quantized_views: bool,
    storage_dtype: Any = jnp.float32,
    movable: dict[str, np.ndarray] | None = None,
    mover: int | None = None) -> Edit:
  """Trains the circuit's slices in a frozen model.

  Args:
    model: the base.
    circuit: the weights that may change.
    scheme_names: quantizers that the edit must survive.
    quantized_views: adds a view of the model under each quantizer.
    storage_dtype: dtype of the exported weights, which decides their codes.
    movable: bool [L, nodes] by leaf name; nodes whose part in that leaf may
      move. None lets every weight of the circuit move.
    mover: layer to leave unedited in rows that run again.
  """
  config, params = model.config, model.params
  storage_dtype = jnp.dtype(storage_dtype)
  index, layout = param_mask.make_index(circuit), model_layout.block_layout(
      config)
  masks = param_mask.make_replacement_masks(circuit)
  theta = float32(param_mask.gather(params, index))
  grids = tuple(
      circuit_grid(params, name, layout, index, storage_dtype)
      for name in scheme_names)

  frozen = lambda full: {
      'params': full, 'index': index, 'replacement_masks': masks}
  base = frozen(params)
  views = {'fp': loop.View(frozen=lambda: base, quantize=_copy)}
  if quantized_views:
    keep = len(scheme_names) == 1  # Several would take a whole model each.
    for name, grid in zip(scheme_names, grids):
      full = _quantized_model(params, layout, name, keep=keep)
      views[name] = loop.View(
          frozen=lambda full=full: frozen(full()),
          quantize=functools.partial(
              _quantize, grid, dtype=params['embed'].dtype))

  forward, unembed = functions(config, circuit.span[0], mover)
  return Edit(
      theta=theta, grids=grids, base=base, views=views, forward=forward,
      unembed=unembed,
      merge=lambda slices: param_mask.scatter(params, index, slices),
      storage_dtype=storage_dtype,
      movable=movable and param_mask.slice_mask(movable, index),
      report=describe('circuit', theta))


def describe(part: str, theta: types.PyTree, **more: Any) -> dict[str, Any]:
  """The record's `trained`.

  Args:
    part: what theta is: `circuit`, `all`, `lora`, or `down` of some layers.
    theta: the trained weights before the first step.
    **more: further entries.
  """
  dtype, = {x.dtype.name for x in jax.tree.leaves(theta)}
  return {'part': part, 'weights': tree_paths.count(theta),
          'dtype': dtype} | more


def count_movable(movable: types.PyTree, theta: types.PyTree) -> int:
  """Number of weights whose bool, broadcast to theta, is True."""
  return sum(jax.tree.leaves(jax.tree.map(
      lambda mask, x: int(mask.sum()) * x.size // mask.size, movable, theta)))


def routed_layer(
    options: run_config.UnlearnConfig, circuit: graph.Circuit,
    mover: int | None) -> int | None:
  """The mover layer, if a forget term reads it unedited; else None.

  Outside the circuit's layers it is not edited in the first place.

  Args:
    options: objective.
    circuit: the weights that may change.
    mover: the mover layer, or None if it is not known.
  """
  first, end = circuit.span
  inside = mover is not None and first <= mover < end
  if options.routed and not inside:
    logging.warning(
        '--unlearn_routed_weight=%g has no effect: the circuit lies in layers'
        ' %d to %d, and the mover layer is %s.', options.routed_weight, first,
        end - 1, 'not known' if mover is None else mover)
  return mover if options.routed and inside else None


def functions(
    config: model_config.ModelConfig, start: int, mover: int | None = None
) -> tuple[Callable[..., types.Array], Callable[..., types.Array]]:
  """`forward` and `unembed` of a circuit's `Edit`.

  Args:
    config: the model's config.
    start: first layer of the circuit.
    mover: layer to leave unedited in the rows `again`.
  """
  def forward(slices, frozen, tokens, positions=None, segments=None,
              again=None, tap=None):
    weights = param_mask.collection(
        slices, frozen['index'], frozen['replacement_masks'])
    return decoder.forward(
        config, frozen['params'], tokens, positions=positions,
        segments=segments, circuit=weights, circuit_start=start,
        again=None if again is None else circuit_layers.Again(mover, again),
        tap=tap, remat=True)

  def unembed(slices, frozen, hidden):
    del slices  # The embedding is never part of a circuit.
    return decoder.unembed(config, frozen['params'], hidden)

  return forward, unembed


def _quantized_model(
    params: types.Params, layout: types.PyTree, name: str, *, keep: bool
) -> Callable[[], types.Params]:
  """`() -> the quantized model`: kept, or quantized again at each call."""
  make = functools.partial(quant.fake_quantize, params, name, layout)
  if not keep:
    return make
  full = make()
  return lambda: full


def float32(tree: types.PyTree) -> types.PyTree:
  """The tree in float32; leaves that are so already are shared."""
  return jax.tree.map(lambda x: cast(x, jnp.float32), tree)


def cast(x: types.Array, dtype: Any) -> types.Array:
  """The array in a dtype; itself if it has it already."""
  return x if x.dtype == dtype else x.astype(dtype)


def optimizer(
    options: run_config.UnlearnConfig) -> optax.GradientTransformation:
  """Adam or LARS; its state holds the learning rate, which the loop sets.

  Adam gives every coordinate a step of about the same size, whatever its
  gradient, so that many codes behind the floor change for little gain. LARS
  keeps the proportions of the gradient within a leaf. A leaf stacks a matrix of
  all layers, so they share one trust ratio.

  References:
    You et al., Large Batch Training of Convolutional Networks, 2017
    (arXiv 1708.03888)
  """
  make = optax.adam
  if options.optimizer == 'lars':
    make = functools.partial(optax.lars, trust_coefficient=1.0, momentum=0.9)
  return optax.inject_hyperparams(make)(learning_rate=options.learning_rate)


def make_transform(
    options: run_config.UnlearnConfig, tx_options: run_config.EditConfig,
    edit: Edit, fisher: types.PyTree | None) -> optax.GradientTransformation:
  """The optax chain of a run; `transforms.chain` documents its order."""
  inner = optimizer(options)
  if not edit.grids:
    return inner if edit.movable is None else optax.chain(
        inner, transforms.mask_to_circuit(edit.movable))
  return transforms.mansu(
      inner, circuit_mask=edit.movable, fisher=fisher,
      quantile=tx_options.fisher_quantile, grids=edit.grids,
      mode=tx_options.floor, landing=tx_options.landing,
      lift_step=options.steps, keep_origin=False,
      storage_dtype=edit.storage_dtype)
