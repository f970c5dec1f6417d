"""A range of layers, with a circuit lifted out of some of them.

Only layers from the circuit's first one up are differentiated, and only the
circuit's own layers compute its slices. All read the stacked weights by number,
so that no part of the frozen model is copied or gets a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import layers as layers_lib
from mansu_jax.runtime import memory
from mansu_jax.runtime import sharding

# Of a device, for what a backward pass finds there of the forward one.
_KEPT_SHARE = 0.5


def remat_policy(
    config: config_lib.ModelConfig, tokens: int, layers: int
) -> Callable[..., bool]:
  """What of a layer's forward pass is kept for the backward one.

  The outputs of the projections, so that only cheap work is done again; where
  a device has no room for these, nothing but what enters the layer. Without
  either a scan also saves a copy of every weight that it contracts.

  Args:
    config: the model's.
    tokens: in all rows, of all devices.
    layers: that are differentiated.
  """
  heads = 2 * (config.num_heads + config.num_kv_heads) * config.d_head
  width = heads + 2 * config.d_ff + 2 * config.d_model
  kept = 4 * tokens * layers * width / sharding.num_row_shards()  # float32
  if kept > _KEPT_SHARE * memory.device_bytes():
    return jax.checkpoint_policies.nothing_saveable
  return jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def run_layers(
    config: config_lib.ModelConfig,
    stacked: types.Params,  # leaves [L, ...]
    x: types.Array,  # [B, T, D]
    rotary: tuple[types.Array, types.Array],  # each [B, T, 1, H / 2]
    mask: types.Array,  # [B or 1, 1, 1, T, S] bool
    *,
    first: int,
    stop: int,
    circuit: types.Params | None = None,  # leaves [C, ...]
    start: int | None = None,
    remat: bool = False,
) -> types.Array:
  """Runs layers `first` to `stop - 1`, some with the circuit's weights.

  Args:
    config: static.
    stacked: the params' `layers`.
    x: the residual stream before layer `first`.
    rotary: from `layers.rotary_tables`.
    mask: True where a token may attend.
    first: first layer that is run; static.
    stop: first layer that is not; static.
    circuit: the `layers` of a circuit collection, for the layers `start` to
      `start + C - 1`; None or empty: there is none.
    start: first layer of the circuit; None where C is L.
    remat: recompute layers in the backward pass.

  Returns:
    The residual stream after the last of them, [B, T, D].

  Raises:
    ValueError: the circuit's rows are not layers that are run.
  """
  leaves = jax.tree.leaves(circuit)
  rows = leaves[0].shape[0] if leaves else 0
  if start is None and rows in (0, config.num_layers):
    start = first
  if start is None or not first <= start <= stop - rows:
    raise ValueError(
        f'A circuit of {rows} layers from layer {start} in layers {first} to'
        f' {stop - 1}; wanted its first layer as circuit_start, so that all are'
        ' layers of the model that are run.')
  block = layers_lib.Block(config)

  def layer(x, number, lifted):
    weights = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(
            leaf, number, keepdims=False), stacked)
    variables = {'params': weights}
    if lifted is not None:
      variables['circuit'] = lifted
    return block.apply(variables, x, rotary, mask)

  if remat:
    layer = jax.checkpoint(layer, prevent_cse=False, policy=remat_policy(
        config, x.shape[0] * x.shape[1], stop - start))

  def run(x, begin, end, lifted: Any = None):
    if begin == end:
      return x
    x, _ = jax.lax.scan(
        lambda x, at: layer(x, *at), x, (jnp.arange(begin, end), lifted))
    return x

  x = run(x, first, start)
  x = run(x, start, start + rows, circuit)
  return run(x, start + rows, stop)
