"""llama.cpp's 8-bit activations, in our decoder.

Before they meet quantized weights llama.cpp rounds activations too: to Q8_0,
blocks of 32 with a float16 scale, or for K types to Q8_K, blocks of 256 with a
float32 one. Its integer products then sum what float32 products of decoded
weights and decoded activations sum. Rules are those of its C reference
(`quantize_row_q8_0_ref`, `quantize_row_q8_K_ref`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mansu_jax.models import layers
from mansu_jax.models import sites

Rounding = Callable[[jax.Array], jax.Array]

_Q8_0_BLOCK, _Q8_K_BLOCK = 32, 256
_INPUTS_OF_O_AND_DOWN = (sites.Site.HEAD_OUT, sites.Site.MLP_HIDDEN)


def round_q8_0(x: jax.Array) -> jax.Array:
  """Values [..., n] after Q8_0; n is a multiple of 32."""
  blocks = x.reshape(*x.shape[:-1], -1, _Q8_0_BLOCK)
  absmax = jnp.max(jnp.abs(blocks), -1, keepdims=True)
  code = jnp.round(blocks * _inverse(absmax, 127.0))
  scale = (absmax / 127).astype(jnp.float16).astype(jnp.float32)
  return (code * scale).reshape(x.shape)


def round_q8_k(x: jax.Array) -> jax.Array:
  """Values [..., n] after Q8_K; n is a multiple of 256."""
  blocks = x.reshape(*x.shape[:-1], -1, _Q8_K_BLOCK)
  first = jnp.argmax(jnp.abs(blocks), -1, keepdims=True)
  largest = jnp.take_along_axis(blocks, first, -1)
  code = jnp.minimum(jnp.round(blocks * _inverse(largest, -127.0)), 127)
  return (code * (largest / -127)).reshape(x.shape)


def _inverse(size: jax.Array, steps: float) -> jax.Array:
  """`steps / size`, 0 where the block is."""
  return jnp.where(size == 0, 0, steps / jnp.where(size == 0, 1, size))


def rounding(weight_type: str) -> Rounding | None:
  """What llama.cpp does to activations before weights of a type.

  Args:
    weight_type: name of a ggml type, such as `Q4_K`.

  Returns:
    The rounding; None where there is none.
  """
  if weight_type in ('F32', 'F16', 'BF16'):
    return None
  return round_q8_k if weight_type.endswith('_K') else round_q8_0


def rounded(
    forward: Callable[..., jax.Array], weight_types: Mapping[int, str]
) -> Callable[..., jax.Array]:
  """The forward function with the inputs of all matrices rounded.

  Args:
    forward: one that runs the decoder's layers.
    weight_types: the ggml type of the matrices, by their number of inputs.
  """
  def round_inputs(x: jax.Array, axes: int = 1) -> jax.Array:
    flat = x.reshape(*x.shape[:x.ndim - axes], -1)
    fn = rounding(weight_types[flat.shape[-1]])
    return x if fn is None else fn(flat).reshape(x.shape)

  def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if context.method_name == '__call__' and isinstance(
        context.module, (layers.Attention, layers.Mlp)):
      args = (round_inputs(args[0]), *args[1:])
    out = call(*args, **kwargs)
    if context.method_name == 'tap' and args[0] in _INPUTS_OF_O_AND_DOWN:
      out = round_inputs(out, out.ndim - 2)  # Heads [B, T, N, H] are one row.
    return out

  def run(*args: Any) -> jax.Array:
    with nn.intercept_methods(intercept):
      return forward(*args)

  return run
