"""Runs a range of layers, some of them with circuit weights or adapters.

Gradients flow only through layers from the circuit's first layer on, and only
the circuit's layers compute its slices. Every layer indexes the stacked
weights, so no part of the frozen model is copied or gets a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import blocks
from mansu_jax.models import config as config_lib
from mansu_jax.models import layers
from mansu_jax.models import lora
from mansu_jax.models import places as places_lib
from mansu_jax.runtime import memory
from mansu_jax.runtime import sharding

_SAVED_SHARE = 0.5  # Share of a device's memory for saved activations.


class Again(NamedTuple):
  """Rows that run a second time, with one layer as in the frozen model.

  That layer has the frozen weights and attends where the frozen model does: its
  queries and keys come from the frozen model's states, and its values and all
  else from the edited model's. The layers above are edited.

  Attributes:
    layer: a layer of the circuit; static under jit.
    rows: the rows, int [R].
  """

  layer: int
  rows: types.Array


def remat_policy(
    config: config_lib.ModelConfig, tokens: int, layers: int
) -> Callable[..., bool]:
  """Chooses the activations that the forward pass saves for the backward pass.

  The policy saves the outputs of the projections, so the backward pass
  recomputes only cheap operations. If a device lacks memory for these, the
  policy saves only the input of each layer. Without a policy, a scan would also
  save a copy of each weight that it contracts.

  Args:
    config: Config of the model.
    tokens: Number of tokens in all rows on all devices.
    layers: Number of differentiated layers.
  """
  heads = 2 * (config.num_heads + config.num_kv_heads) * config.d_head
  width = heads + 2 * config.d_ff + 2 * config.d_model
  saved = 4 * tokens * layers * width / sharding.num_row_shards()  # float32
  if saved > _SAVED_SHARE * memory.device_bytes():
    return jax.checkpoint_policies.nothing_saveable
  return jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def run_layers(
    config: config_lib.ModelConfig,
    stacked: types.Params,  # leaves [L, ...]
    x: types.Array,  # [B, T, D]
    places: places_lib.Places,
    *,
    first: int,
    stop: int,
    circuit: types.Params | None = None,  # leaves [C, ...]
    start: int | None = None,
    adapters: types.PyTree | None = None,  # leaves [L, ...]
    adapter_scale: float = 1.0,
    again: Again | None = None,
    tap: int | None = None,
    remat: bool = False,
) -> types.Array | tuple[types.Array, types.Array]:
  """Runs layers `first` to `stop - 1`, some with circuit weights.

  An adapted matrix is formed inside its layer. So one layer's sums exist at a
  time, and so does one layer's gradient of them, which the backward pass turns
  into the gradient of the adapters at once.

  Args:
    config: Config of the model; static under jit.
    stacked: `layers` of the params.
    x: Residual stream before layer `first`.
    places: Where the tokens stand.
    first: First layer to run; static under jit.
    stop: First layer not to run; static under jit.
    circuit: `layers` of a circuit collection for the layers `start` to
      `start + C - 1`. None or empty: no circuit.
    start: First layer of the circuit. May be None if C is L.
    adapters: `layers` of the LoRA adapters, for all layers (see `lora`).
    adapter_scale: Factor of the adapters' products.
    again: Rows to run again; their results follow the others.
    tap: A layer to read, without `again`; static under jit.
    remat: Whether to recompute layers in the backward pass.

  Returns:
    Residual stream after the last layer, [B + R, T, D]; with `tap`, also that
    after the layer `tap`.

  Raises:
    ValueError: the circuit's layers are not among the layers to run, or the
      layer to run again is not one of the circuit's.
  """
  leaves = jax.tree.leaves(circuit)
  rows = leaves[0].shape[0] if leaves else 0
  if start is None and rows in (0, config.num_layers):
    start = first
  if start is None or not first <= start <= stop - rows:
    raise ValueError(
        f'The circuit has {rows} layers from layer {start} on, but the decoder'
        f' runs layers {first} to {stop - 1}; wanted all circuit layers among'
        ' these. Pass the first circuit layer as circuit_start.')
  if again is not None and not start <= again.layer < start + rows:
    raise ValueError(
        f'Layer {again.layer} is to run again, but the circuit\'s layers are'
        f' {start} to {start + rows - 1}; wanted one of these.')
  if tap is not None and not (first <= tap < stop and again is None):
    raise ValueError(
        f'Layer {tap} is to be read, but the decoder runs layers {first} to'
        f' {stop - 1}' + (' and some rows again.' if again else '.')
        + ' Read one of these, with no rows to run again.')
  block = blocks.Block(config)

  def layer(x, places, index, circuit_layer, adapter):
    weights = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(
            leaf, index, keepdims=False), stacked)
    if adapter is not None:
      weights = lora.add(weights, adapter, adapter_scale)
    variables = {'params': weights}
    if circuit_layer is not None:
      variables['circuit'] = circuit_layer
    return block.apply(variables, x, index, places)

  if remat:
    layer = jax.checkpoint(layer, prevent_cse=False, policy=remat_policy(
        config, x.shape[0] * x.shape[1], stop - start))

  tapped = []

  def run(state, begin, end, circuit: Any = None):
    if tap is not None and begin <= tap < end - 1:  # The scan in two.
      part = lambda rows: jax.tree.map(lambda leaf: leaf[rows], circuit)
      middle = tap + 1 - begin
      state = run(state, begin, tap + 1, part(slice(middle)))
      return run(state, tap + 1, end, part(slice(middle, None)))
    if begin == end:
      return state
    x, places = state
    x, _ = jax.lax.scan(
        lambda x, inputs: layer(x, places, *inputs), x,
        (jnp.arange(begin, end), circuit, jax.tree.map(
            lambda leaf: leaf[begin:end], adapters)))
    if tap == end - 1:
      tapped.append(x)
    return x, places

  def edited(state, begin, end):
    return run(state, begin, end, jax.tree.map(
        lambda leaf: leaf[begin - start:end - start], circuit))

  state = run((x, places), first, start)
  if again is None:
    state = run(state, start, start + rows, circuit)
  else:
    own = edited(state, start, again.layer)
    again_places = places.rows(again.rows)
    looks, _ = run((state[0][again.rows], again_places), start, again.layer)
    values = own[0][again.rows]
    weights = jax.tree.map(lambda leaf: leaf[again.layer], stacked)
    read = layers.look_and_read(
        config, weights, looks, looks, weights, values, values,
        again_places.of_layer(config, again.layer))
    x, _ = edited(own, again.layer, again.layer + 1)
    state = edited(
        (jnp.concatenate([x, read]), places.followed_by(again_places)),
        again.layer + 1, start + rows)
  x, _ = run(state, start + rows, stop)
  return x if tap is None else (x, *tapped)
