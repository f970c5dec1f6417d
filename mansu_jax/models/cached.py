"""Runs the decoder with a cache of keys and values, for generation.

Token t of a row lies in slot t of the cache. A token attends to the slots up to
its own, so padding behind a row's tokens is never read: the row's next tokens
overwrite it first.

    keys, values [L, B, S, K, H]

Example:
  >>> config = config_lib.ModelConfig(
  ...     vocab_size=97, d_model=16, num_layers=2, num_heads=4,
  ...     num_kv_heads=2, d_head=4, d_ff=32)
  >>> params = decoder.init(config, jax.random.key(0))
  >>> first = jax.jit(prefill, static_argnums=0, static_argnames='slots')
  >>> hidden, cache = first(
  ...     config, params, jnp.array([[5, 6, 7]]), jnp.array([3]), slots=8)
  >>> hidden.shape, cache['keys'].shape
  ((1, 16), (2, 1, 8, 2, 4))
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import blocks
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.models import layers
from mansu_jax.models import places as places_lib
from mansu_jax.runtime import sharding

Cache = dict[str, types.Array]

_AXES = 'LBSKH'


def prefill(
    config: config_lib.ModelConfig,
    params: types.Params,
    tokens: types.Array,  # [B, T] int32, right-padded
    length: types.Array,  # [B] int32
    *,
    slots: int,
) -> tuple[types.Array, Cache]:
  """Runs the first tokens of each row.

  Args:
    config: Config of the model; static under jit.
    params: Full params.
    tokens: Token ids.
    length: Number of tokens of each row.
    slots: Size of the cache, S: most tokens of a row with those to come.

  Returns:
    The last token's hidden state after the final norm, float32 [B, D], and the
    cache.
  """
  shape = (config.num_layers, tokens.shape[0], slots, config.num_kv_heads,
           config.d_head)
  cache = {name: jnp.zeros(shape, jnp.float32) for name in ('keys', 'values')}
  start = jnp.zeros_like(length)
  return extend(config, params, tokens, start, length, cache)


def extend(
    config: config_lib.ModelConfig,
    params: types.Params,
    tokens: types.Array,  # [B, T] int32, right-padded
    start: types.Array,  # [B] int32
    length: types.Array,  # [B] int32
    cache: Cache,
) -> tuple[types.Array, Cache]:
  """Runs the next tokens of each row; donate the cache.

  Args:
    config: Config of the model; static under jit.
    params: Full params.
    tokens: Token ids. Tokens beyond the last slot are not remembered.
    start: Number of each row's tokens that ran before.
    length: Number of new tokens of each row.
    cache: Keys and values of the tokens before.

  Returns:
    As `prefill`.
  """
  slots = start[:, None] + jnp.arange(tokens.shape[1])[None]  # [B, T]
  every = jnp.arange(cache['keys'].shape[2])[None]
  places = places_lib.find(
      config, slots, every[:, None] <= slots[..., None], remembered=every)
  x = decoder.embed(config, params, tokens, slots).astype(jnp.float32)
  block = blocks.Block(config)

  def layer(carry, index):
    x, cache = carry
    at = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)
    (x, _), new = block.apply(
        {'params': jax.tree.map(at, params['layers']),
         'cache': {'attn': jax.tree.map(at, cache) | {'start': start}}},
        x, index, places, mutable='cache')
    # A carried cache is updated in place; a scanned one would be copied.
    cache = {name: jax.lax.dynamic_update_index_in_dim(
        leaf, new['cache']['attn'][name], index, 0)
             for name, leaf in cache.items()}
    return (x, _place(cache)), None

  (x, cache), _ = jax.lax.scan(
      layer, (sharding.constrain_rows(x), _place(cache)),
      jnp.arange(config.num_layers))
  last = jnp.take_along_axis(x, length[:, None, None] - 1, axis=1)  # [B, 1, D]
  hidden = layers.norm(config, params, 'final_norm', last)
  return hidden[:, 0], cache


def _place(cache: Cache) -> Cache:
  """Splits the rows and the heads over the devices."""
  return {name: sharding.constrain(leaf, _AXES)
          for name, leaf in cache.items()}
