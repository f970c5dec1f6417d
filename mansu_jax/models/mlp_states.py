"""What the MLP of one layer reads and adds, at every token of packed rows."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import circuit_layers
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.models import layers
from mansu_jax.models import places as places_lib
from mansu_jax.runtime import sharding


class MlpStates(NamedTuple):
  """States at one layer, float32."""

  hidden: types.Array  # [B, T, F], the input of the down projection
  size: types.Array  # [B, T], what the norm behind divides its output by, or 1
  after: types.Array  # [B, T, D], the residual stream after the layer


def find(
    config: config_lib.ModelConfig,
    params: types.Params,
    tokens: types.Array,  # [B, T] int32
    layer: int,
    positions: types.Array,  # [B, T] int32
    segments: types.Array,  # [B, T] int32
) -> MlpStates:
  """Runs the layers up to one, and that one in parts.

  Args:
    config: Config of the model; static under jit.
    params: Full params.
    tokens: Token ids of packed rows.
    layer: The layer; static under jit.
    positions: Positions of the tokens in their sequences.
    segments: Segment number of each token; see `places.packed`.
  """
  places = places_lib.find(
      config, positions, places_lib.packed(positions, segments))
  embedded = decoder.embed(config, params, tokens, positions)
  before = circuit_layers.run_layers(
      config, params['layers'],
      sharding.constrain_rows(embedded.astype(jnp.float32)), places, first=0,
      stop=layer)
  weights = jax.tree.map(lambda leaf: leaf[layer], params['layers'])
  attn, mlp = weights['attn'], weights['mlp']
  normed = layers.norm(config, weights, 'attn_norm', before)
  heads = layers.attend_projected(
      config, attn, [layers.project(attn, name, normed) for name in 'qkv'],
      places.of_layer(config, layer))
  middle = before + layers.attn_adds(config, weights, heads)
  hidden = layers.mlp_hidden(config, mlp, layers.norm(
      config, weights, 'mlp_norm', layers.mlp_reads(config, before, middle)))
  size = jnp.ones(tokens.shape, jnp.float32)
  if config.post_norms:
    written = layers.project_down(mlp, hidden)
    size = 1 / layers.inverse_size(config, written)[..., 0]
  return MlpStates(
      hidden, size, middle + layers.mlp_adds(config, weights, hidden))
