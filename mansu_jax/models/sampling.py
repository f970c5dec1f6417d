"""Samples continuations, a token at a time behind cached keys and values."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder


@functools.partial(jax.jit, static_argnames=('config',))
def sample(
    config: config_lib.ModelConfig,
    params: types.Params,
    tokens: types.Array,  # [B, T] int32
    length: types.Array,  # [B] int32
    key: types.Array,
    temperature: float = 1.0,
) -> types.Array:
  """Fills rows up with draws from the model's own distribution.

  Args:
    config: the model's.
    params: full params.
    tokens: prompts; what stands behind a row's length is ignored.
    length: tokens of each prompt, at least 1.
    key: PRNG key.
    temperature: what the logits are divided by, above 0; below 1 the likely
      becomes likelier.

  Returns:
    [B, T] int32: the prompts, and behind each a continuation.
  """
  rows, width = tokens.shape

  def step(carry, at):
    current, cache = carry
    hidden, cache = decoder.forward_cached(config, params, current, cache, at)
    logits = decoder.unembed(params, hidden) / temperature
    drawn = jax.random.categorical(jax.random.fold_in(key, at), logits)
    given = tokens[:, jnp.minimum(at + 1, width - 1)]
    following = jnp.where(at + 1 < length, given, drawn.astype(tokens.dtype))
    return (following, cache), following

  cache = decoder.empty_cache(config, rows, width)
  _, filled = jax.lax.scan(
      step, (tokens[:, 0], cache), jnp.arange(width - 1))
  return jnp.concatenate([tokens[:, :1], filled.T], axis=1)
