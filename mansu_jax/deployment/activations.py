"""llama.cpp's 8-bit activations, emulated in the decoder of this package.

llama.cpp rounds activations before it multiplies them by quantized weights. It
uses Q8_0 (blocks of 32 with a float16 scale), or Q8_K (blocks of 256 with a
float32 scale) for weights of a K type. Its integer products then equal float32
products of decoded weights and decoded activations, up to the order of sums.
The rules follow its C reference (`quantize_row_q8_0_ref`,
`quantize_row_q8_K_ref`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mansu_jax.models import blocks
from mansu_jax.models import sites

Rounding = Callable[[jax.Array], jax.Array]

_Q8_0_BLOCK, _Q8_K_BLOCK = 32, 256
_INPUTS_OF_O_AND_DOWN = (sites.Site.HEAD_OUT, sites.Site.MLP_HIDDEN)


def round_q8_0(x: jax.Array) -> jax.Array:
  """Encodes values [..., n] as Q8_0 and decodes; n is a multiple of 32."""
  blocks = x.reshape(*x.shape[:-1], -1, _Q8_0_BLOCK)
  absmax = jnp.max(jnp.abs(blocks), -1, keepdims=True)
  code = jnp.round(blocks * _inverse(absmax, 127.0))
  scale = (absmax / 127).astype(jnp.float16).astype(jnp.float32)
  return (code * scale).reshape(x.shape)


def round_q8_k(x: jax.Array) -> jax.Array:
  """Encodes values [..., n] as Q8_K and decodes; n is a multiple of 256."""
  blocks = x.reshape(*x.shape[:-1], -1, _Q8_K_BLOCK)
  first = jnp.argmax(jnp.abs(blocks), -1, keepdims=True)
  largest = jnp.take_along_axis(blocks, first, -1)
  code = jnp.minimum(jnp.round(blocks * _inverse(largest, -127.0)), 127)
  return (code * (largest / -127)).reshape(x.shape)


def _inverse(divisor: jax.Array, numerator: float) -> jax.Array:
  """`numerator / divisor`, 0 where the divisor is 0."""
  return jnp.where(
      divisor == 0, 0, numerator / jnp.where(divisor == 0, 1, divisor))


def rounding_for(weight_type: str) -> Rounding | None:
  """Rounding that llama.cpp applies to inputs of weights of one type.

  Args:
    weight_type: Name of a ggml type, such as `Q4_K`.

  Returns:
    The rounding; None for float types, whose inputs llama.cpp does not round.
  """
  if weight_type in ('F32', 'F16', 'BF16'):
    return None
  return round_q8_k if weight_type.endswith('_K') else round_q8_0


def with_rounded_inputs(
    forward: Callable[..., jax.Array], weight_types: Mapping[int, str]
) -> Callable[..., jax.Array]:
  """Rounds the inputs of all matrices of the layers in a forward function.

  Args:
    forward: Function that runs the decoder's layers.
    weight_types: ggml type of the matrices by number of inputs.

  Returns:
    A function of the same arguments.
  """
  def round_last_axes(x: jax.Array, axes: int = 1) -> jax.Array:
    flat = x.reshape(*x.shape[:x.ndim - axes], -1)
    rounding = rounding_for(weight_types[flat.shape[-1]])
    return x if rounding is None else rounding(flat).reshape(x.shape)

  def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if context.method_name == '__call__' and isinstance(
        context.module, (blocks.Attention, blocks.Mlp)):
      args = (round_last_axes(args[0]), *args[1:])
    out = call(*args, **kwargs)
    if context.method_name == 'tap' and args[0] in _INPUTS_OF_O_AND_DOWN:
      # The heads of a token, [B, T, N, H], form one row.
      out = round_last_axes(out, out.ndim - 2)
    return out

  def run(*args: Any) -> jax.Array:
    with nn.intercept_methods(intercept):
      return forward(*args)

  return run
