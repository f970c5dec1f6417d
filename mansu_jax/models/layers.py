"""What a layer computes, as pure functions on the weights of one layer.

Each part of the computation stands here once. The decoder, edge attribution,
patching, calibration and the controls call these functions, so that a model's
norms, positions and activations are the same everywhere. Norms, softmax and
rotary positions use float32 for every compute dtype.

A layer's weights are the nested dict of `decoder`, without the leading L:

    attn_norm, mlp_norm [D]
    attn_post_norm, mlp_post_norm [D] if it norms what layers add
    attn: q [D, N, H], k, v [D, K, H], o [N, H, D]
      q_bias [N, H], k_bias, v_bias [K, H] if the model has them
      q_norm, k_norm [H] if it norms queries and keys
    mlp: up [D, F], down [F, D], gate [D, F] if it is gated
    attn_norm_bias, mlp_norm_bias [D]; attn: o_bias [D]; mlp: up_bias [F],
      down_bias [D]; if the model has them
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import places as places_lib
from mansu_jax.models import rotary
from mansu_jax.runtime import memory

Array = types.Array
Params = types.Params
ModelConfig = config_lib.ModelConfig
Places = places_lib.Places

# Activations of the MLP, by their names in `ModelConfig`.
ACTIVATIONS = {
    'silu': nn.silu,
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(nn.gelu, approximate=True)}


def norm(config: ModelConfig, weights: Params, name: str, x: Array) -> Array:
  """A norm of the residual stream [..., D] or of heads [..., H].

  Args:
    config: Config of the model.
    weights: Params of the layer, of its attention, or of the model.
    name: Of the norm's leaf in `weights`.
    x: Its input.
  """
  centred = centre(config, x.astype(jnp.float32))
  scale = norm_scale(config, weights, name)
  out = centred * _inverse_rms(config, centred) * _along_last(scale, x)
  return _biased(out, weights, f'{name}_bias').astype(x.dtype)


def _along_last(leaf: Array, x: Array) -> Array:
  """Broadcasts a leaf [D] against x [..., D]."""
  return leaf.reshape((1,) * (x.ndim - 1) + (-1,))


def _biased(x: Array, weights: Params, name: str) -> Array:
  """Adds a bias over the last axis, if the model has it."""
  bias = weights.get(name)
  return x if bias is None else x + _along_last(bias.astype(x.dtype), x)


def centre(config: ModelConfig, x: Array) -> Array:
  """What a norm scales: `x` without its mean over [..., D], or `x`."""
  if config.norm != 'layer':
    return x
  return x - jnp.mean(x, axis=-1, keepdims=True)


def inverse_size(config: ModelConfig, x: Array) -> Array:
  """A norm's factor of `centre(x)`, [..., 1] (Zhang and Sennrich, 2019)."""
  return _inverse_rms(config, centre(config, x))


def _inverse_rms(config: ModelConfig, x: Array) -> Array:
  mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
  return jax.lax.rsqrt(mean_square + config.norm_eps)


def norm_scale(config: ModelConfig, weights: Params, name: str) -> Array:
  """What a norm multiplies each axis of the stream with, float32 [D]."""
  return weights[name].astype(jnp.float32) + config.norm_offset


def post_norm(
    config: ModelConfig, weights: Params, part: str, x: Array) -> Array:
  """What `attn` or `mlp` adds to the stream, from its output [..., D]."""
  if not config.post_norms:
    return x
  return norm(config, weights, f'{part}_post_norm', x)


def attn_adds(config: ModelConfig, weights: Params, heads_: Array) -> Array:
  """What attention adds to the stream, from its heads [B, T, N, H]."""
  return post_norm(
      config, weights, 'attn', project_out(weights['attn'], heads_))


def mlp_adds(config: ModelConfig, weights: Params, a: Array) -> Array:
  """What the MLP adds to the stream, from its activations [B, T, F]."""
  return post_norm(config, weights, 'mlp', project_down(weights['mlp'], a))


def post_norm_shares(
    config: ModelConfig, weights: Params, part: str, shares: Array) -> Array:
  """What each share [N, ..., D] of a part's output adds to the stream.

  The shares add up to `post_norm` of their sum.
  """
  if not config.post_norms:
    return shares
  size = inverse_size(config, shares.sum(0, keepdims=True, dtype=jnp.float32))
  scale = norm_scale(config, weights, f'{part}_post_norm')
  return shares * size * _along_last(scale, shares)


def project(
    attn: Params,
    name: str,
    x: Array,  # [B, T, D], after the norm
) -> Array:
  """Projects to the heads of `q`, `k` or `v`, [B, T, N or K, H]."""
  return einsum('BTD,DNH->BTNH', x, attn[name])


def place_heads(
    config: ModelConfig,
    attn: Params,
    name: str,
    projected: Array,  # [B, T, N or K, H]
    places: Places,
) -> Array:
  """Queries, keys or values from their projections, of the same shape.

  Adds the bias, norms queries and keys, and rotates them.

  Args:
    config: Config of the model.
    attn: Weights of the attention.
    name: `q`, `k` or `v`.
    projected: Result of `project`.
    places: Of this layer.
  """
  if config.qkv_bias:
    bias = attn[f'{name}_bias'].astype(projected.dtype)
    projected = projected + bias[None, None]
  if name == 'v':
    return projected
  if config.qk_norm:
    projected = norm(config, attn, f'{name}_norm', projected)
  if config.positions != 'rotary':
    return projected
  return rotary.rotate(
      projected, places.queries if name == 'q' else places.keys)


def heads(
    config: ModelConfig, attn: Params, name: str, x: Array, places: Places
) -> Array:
  """Queries, keys or values, of `q`, `k` or `v`; see `project`."""
  return place_heads(config, attn, name, project(attn, name, x), places)


def attend(
    config: ModelConfig,
    queries: Array,  # [B, T, N, H]
    keys: Array,  # [B, S, K, H]
    values: Array,  # [B, S, K, H]
    mask: Array,  # [B, 1, 1, T, S] bool
) -> Array:
  """Softmax attention; query head n reads key/value head n // (N / K).

  The G = N / K query heads of a group share their keys without copying them.

  Returns:
    [B, T, N, H] in the dtype of `values`.
  """
  batch, length, num_heads, d_head = queries.shape
  num_kv = keys.shape[2]
  grouped = queries.reshape(
      batch, length, num_kv, num_heads // num_kv, d_head)
  scores = jnp.einsum('BTKGH,BSKH->BKGTS', grouped, keys,
                      preferred_element_type=jnp.float32)
  scores = soft_cap(scores * config.score_scale, config.attn_soft_cap)
  scores = jnp.where(mask, scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  out = jnp.einsum('BKGTS,BSKH->BTKGH', weights, values)
  return out.reshape(batch, length, num_heads, d_head)


def soft_cap(x: Array, cap: float) -> Array:
  """Bounds scores or logits smoothly to -cap .. cap; 0: leaves them."""
  return jnp.tanh(x / cap) * cap if cap else x


def attend_projected(
    config: ModelConfig,
    attn: Params,
    projected: Sequence[Array],  # [B, T, N, H], and two of [B, T, K or N, H]
    places: Places,
) -> Array:
  """Attention [B, T, N, H] from the projections to `q`, `k` and `v`."""
  return attend(config, *(place_heads(config, attn, name, one, places)
                          for name, one in zip('qkv', projected)), places.mask)


def project_out(
    attn: Params,
    heads_: Array,  # [B, T, N, H]
) -> Array:
  """The output of attention, [B, T, D]."""
  return _biased(einsum('BTNH,NHD->BTD', heads_, attn['o']), attn, 'o_bias')


def for_query_heads(
    config: ModelConfig, x: Array, axis: int) -> Array:
  """Repeats what key/value heads have for each of their query heads."""
  return jnp.repeat(x, config.num_heads // config.num_kv_heads, axis=axis)


def of_query_heads(config: ModelConfig, attn: Params) -> Params:
  """Weights in which each query head has keys and values of its own."""
  axes = {'k': 1, 'v': 1, 'k_bias': 0, 'v_bias': 0}
  return {name: for_query_heads(config, leaf, axes[name]) if name in axes
          else leaf for name, leaf in attn.items()}


def mlp_inputs(
    mlp: Params,
    x: Array,  # [..., D], after the norm
) -> tuple[Array, ...]:
  """What the activation takes: the projections to `gate` and `up`, [..., F]."""
  return tuple(
      _biased(einsum('...D,DF->...F', x, mlp[name]), mlp, f'{name}_bias')
      for name in ('gate', 'up') if name in mlp)


def activate(config: ModelConfig, inputs: Sequence[Array]) -> Array:
  """Hidden activations act(gate) * up (Shazeer, 2020), or act(up)."""
  *gate, up = inputs
  act = ACTIVATIONS[config.activation]
  return act(*gate) * up if gate else act(up)


def mlp_hidden(config: ModelConfig, mlp: Params, x: Array) -> Array:
  """Hidden activations [..., F] of the MLP for its normed input [..., D]."""
  return activate(config, mlp_inputs(mlp, x))


def project_down(
    mlp: Params,
    a: Array,  # [B, T, F]
) -> Array:
  """The down projection [B, T, D]; on CPU, the sum of eight parts.

  At the first token one neuron can be thousands of times larger than the others
  (Sun et al., 2024), and a float32 sum over F then loses digits of the smaller
  terms. Measured on SmolLM2 and 20 short texts, eight parts reduce the largest
  logit difference from torch from 2.3e-4 to 0.9e-4 (mean 1.2e-4 to 0.6e-4) and
  take 2 % more forward time. Other devices accumulate in hardware blocks.
  """
  if memory.platform() != 'cpu':
    out = einsum('BTF,FD->BTD', a, mlp['down'])
  else:
    parts = zip(
        jnp.array_split(a, 8, axis=-1), jnp.array_split(mlp['down'], 8))
    out = sum(einsum('BTF,FD->BTD', x, w) for x, w in parts)
  return _biased(out, mlp, 'down_bias')


def einsum(spec: str, x: Array, weight: Array) -> Array:
  """An einsum with the weight cast to the compute dtype."""
  return jnp.einsum(spec, x, weight.astype(x.dtype))


def mlp_reads(config: ModelConfig, before: Array, middle: Array) -> Array:
  """The stream that the MLP reads: that before or that after attention."""
  return before if config.parallel else middle


def feed_forward(
    config: ModelConfig, weights: Params, before: Array, middle: Array
) -> Array:
  """The residual stream [B, T, D] after the layer.

  Args:
    config: Config of the model.
    weights: Weights of the layer.
    before: The stream before the layer, [B, T, D].
    middle: The stream after attention.
  """
  mlp = weights['mlp']
  normed = norm(
      config, weights, 'mlp_norm', mlp_reads(config, before, middle))
  return middle + mlp_adds(config, weights, mlp_hidden(config, mlp, normed))


def look_and_read(
    config: ModelConfig,
    looks: Params,
    queries: Array,  # [B, Q, D]
    keys: Array,  # [B, T, D]
    reads: Params,
    values: Array,  # [B, T, D]
    residual: Array,  # [B, Q, D]
    places: Places,
) -> Array:  # [B, Q, D]
  """Runs a layer that looks at some states and reads others.

  Args:
    config: Config of the model.
    looks: Weights of the layer that gives queries and keys.
    queries: Its states before the layer, where it asks.
    keys: Its states before the layer, everywhere.
    reads: Weights of the layer for all else.
    values: The states that its values map.
    residual: The states to which its outputs are added.
    places: Of this layer, for the queries and keys.
  """
  states = {'q': (looks, queries), 'k': (looks, keys), 'v': (reads, values)}
  out = attend(config, *(
      heads(config, weights['attn'], name,
            norm(config, weights, 'attn_norm', x), places)
      for name, (weights, x) in states.items()), places.mask)
  return feed_forward(
      config, reads, residual, residual + attn_adds(config, reads, out))
