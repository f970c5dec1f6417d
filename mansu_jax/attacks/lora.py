"""Low-rank adapters on all matrices of all layers.

A leaf W [L, in, out] becomes W + (alpha / R) A B. Adapters are a tree like
`params['layers']` whose matrices are `{'a': [L, in, R], 'b': [L, R, out]}`, in
float32; norms have none.

References:
  Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021
  (arXiv 2106.09685)
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import circuit_layers
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layers
from mansu_jax.models import layout
from mansu_jax.runtime import sharding

RANK = 8
_ALPHA = 16.0
_LAYERS = 'layers/'


def init(params: types.Params, key: types.Array) -> types.PyTree:
  """Adapters that change nothing: A is normal, B is zero.

  Args:
    params: Params of the model, or their shapes.
    key: Key of A, whose entries have variance 1 / in.
  """
  flat, out = tree_paths.flatten(params), {}
  names = sorted(layout.MATRICES)
  for name, own in zip(names, jax.random.split(key, len(names))):
    shape, inputs = flat[name].shape, 1 + len(layout.MATRICES[name].inp)
    d_in, d_out = math.prod(shape[1:inputs]), math.prod(shape[inputs:])
    name = name.removeprefix(_LAYERS)
    out[f'{name}/a'] = jax.random.normal(
        own, (shape[0], d_in, RANK)) / math.sqrt(d_in)
    out[f'{name}/b'] = jnp.zeros((shape[0], RANK, d_out))
  return tree_paths.unflatten(out)


def _add(stacked: types.Params, adapters: types.PyTree) -> types.Params:
  """Adds A B to the matrices of one layer, or of all stacked layers."""
  flat, own = tree_paths.flatten(stacked), tree_paths.flatten(adapters)
  for name in layout.MATRICES:
    name = name.removeprefix(_LAYERS)
    weight = flat[name].astype(jnp.float32)
    change = jnp.matmul(own[f'{name}/a'], own[f'{name}/b'])
    flat[name] = weight + _ALPHA / RANK * change.reshape(weight.shape)
  return tree_paths.unflatten(flat)


@jax.jit
def merge(params: types.Params, adapters: types.PyTree) -> types.Params:
  """Full params with the adapters merged, in the dtypes of the params."""
  merged = params | {'layers': _add(params['layers'], adapters)}
  return jax.tree.map(lambda x, like: x.astype(like.dtype), merged, params)


def forward(
    config: model_config.ModelConfig,
    params: types.Params,
    adapters: types.PyTree,
    tokens: types.Array,  # [B, T] int32
    positions: types.Array,  # [B, T] int32
    segments: types.Array,  # [B, T] int32
) -> types.Array:
  """As `decoder.forward`, with adapters that each layer merges by itself.

  So gradients exist for adapters and for the matrices of one layer at a time.

  Args:
    config: Config of the model; static under jit.
    params: Full params, which get no gradient.
    adapters: Adapters, as of `init`.
    tokens: Token ids of packed rows.
    positions: Positions within the segments.
    segments: Segment numbers; see `decoder.segment_mask`.

  Returns:
    Hidden state after the final norm, float32 [B, T, D].
  """
  x = sharding.constrain_rows(
      decoder.embed(params, tokens).astype(jnp.float32))
  rotary = layers.rotary_tables(config, positions)
  mask = decoder.segment_mask(positions, segments)[:, None, None]
  block = layers.Block(config)

  def layer(x, index, own):
    weights = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False),
        params['layers'])
    return block.apply({'params': _add(weights, own)}, x, rotary, mask)

  layer = jax.checkpoint(layer, prevent_cse=False, policy=_policy(
      config, tokens.size))
  x, _ = jax.lax.scan(
      lambda x, inputs: layer(x, *inputs), x,
      (jnp.arange(config.num_layers), adapters))
  return layers.rms_norm(x, params['final_norm'], config.norm_eps)


def _policy(config: model_config.ModelConfig, tokens: int) -> Any:
  """Saves what `circuit_layers.remat_policy` saves, but no product A B.

  A B has the size of a matrix; products of activations have three axes.
  """
  saves = circuit_layers.remat_policy(config, tokens, config.num_layers)
  return lambda primitive, *args, **options: (
      max((x.ndim for x in args), default=0) > 2
      and saves(primitive, *args, **options))
