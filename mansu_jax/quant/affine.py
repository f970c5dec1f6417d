"""Asymmetric 4-bit integers along the input: code, scale and zero point.

What GPTQ and AWQ checkpoints hold. Each group of weights of a row of the torch
[out, in] matrix spans its range, zero always included, with 16 integers:
value = (code - zero) * scale. AutoGPTQ does so; AutoAWQ leaves zero out of a
range of one sign and then clips the zero point, which clips the largest
weights. Both store scales in float16; here they are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise

LARGEST = 15  # Codes are 0 to 15.
# A group of a smaller span is taken for zeros: its scale might be subnormal.
_LEAST_SPAN = np.float32(2.0**-100)


class AffineCodes(NamedTuple):
  """Codes of a matrix, as checkpoints hold them: little over a byte a weight.

  Leaves may have batch axes before these.
  """

  code: jax.Array  # uint8 [out, in], 0 to 15
  scale: jax.Array  # float32 [out, G], the distance of neighbouring values
  zero: jax.Array  # uint8 [out, G], the code of value 0, 0 to 15
  group: jax.Array  # int32 [in], which of G groups an input is of
  # float32 [in], what values are divided by where inputs were scaled; or None.
  divisor: jax.Array | None = None


def fit(values: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  """Scale and zero point of groups along an axis, which is kept with size 1.

  A group of zeros gets the range [-1, 1], as in AutoGPTQ.
  """
  low = jnp.min(values, axis=axis, keepdims=True, initial=0)
  high = jnp.max(values, axis=axis, keepdims=True, initial=0)
  is_empty = high - low < _LEAST_SPAN
  low = jnp.where(is_empty, -1, low)
  high = jnp.where(is_empty, 1, high)
  scale = (high - low) / LARGEST
  return scale, jnp.clip(jnp.round(-low / scale), 0, LARGEST)


def encode(values: jax.Array, scale: jax.Array, zero: jax.Array) -> jax.Array:
  """Codes (uint8) nearest to values (float32); ties to even."""
  code = jnp.round(values / scale) + zero
  return jnp.clip(code, 0, LARGEST).astype(jnp.uint8)


def value(code: jax.Array, scale: jax.Array, zero: jax.Array) -> jax.Array:
  """Values (float32) of codes, for any shapes that broadcast."""
  return (code.astype(jnp.float32) - zero) * scale


def spread(codes: AffineCodes) -> tuple[jax.Array, jax.Array]:
  """Scale and zero point (float32) of each weight, [..., out, in]."""
  group = codes.group[..., None, :]  # [..., 1, in]
  pick = lambda x: jnp.take_along_axis(x, group, axis=-1)
  scale = pick(codes.scale)
  if codes.divisor is not None:
    scale = scale / codes.divisor[..., None, :]
  return scale, pick(codes.zero).astype(jnp.float32)


def decode(codes: AffineCodes) -> jax.Array:
  """Values (float32) [..., out, in] of codes."""
  return value(codes.code, *spread(codes))


def level(codes: AffineCodes) -> jax.Array:
  """Codes counted from that of value 0, int8 [..., out, in]."""
  _, zero = spread(codes)
  return codes.code.astype(jnp.int8) - zero.astype(jnp.int8)


def boundaries(codes: AffineCodes) -> tuple[jax.Array, jax.Array]:
  """Ends (float32) [..., out, in] of the interval of each code at its scale.

  Infinite outward of an end code. GPTQ chooses codes by more than the weight:
  a weight may lie outside the interval of its own.
  """
  scale, zero = spread(codes)
  end = lambda shift: value(codes.code.astype(jnp.float32) + shift, scale, zero)
  return (jnp.where(codes.code == 0, -jnp.inf, end(-0.5)),
          jnp.where(codes.code == LARGEST, jnp.inf, end(0.5)))


def round_to_nearest(rows: jax.Array, *, group: int = 128) -> AffineCodes:
  """Quantizes a float32 matrix [batch..., out, in] without calibration.

  Args:
    rows: weights in torch order.
    group: inputs that share a scale; the last group of a row may be partial.
  """
  inputs = rows.shape[-1]
  code, scale, zero = _round_blocks(rows, group)
  flat = lambda x: x[..., 0, 0]
  return AffineCodes(
      blockwise.join(code, inputs), flat(scale),
      flat(zero).astype(jnp.uint8), jnp.broadcast_to(
          jnp.arange(inputs) // group, (*rows.shape[:-2], inputs)))


def rounded(rows: jax.Array, *, group: int = 128) -> jax.Array:
  """Values (float32) of `round_to_nearest`, without its codes."""
  return blockwise.join(value(*_round_blocks(rows, group)), rows.shape[-1])


def _round_blocks(
    rows: jax.Array, group: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Codes [..., out, G, Q, 1], scales and zero points [..., out, G, 1, 1]."""
  blocks = blockwise.split(rows, group)  # Zeros of padding move no range.
  scale, zero = fit(blocks, axis=-2)
  return encode(blocks, scale, zero), scale, zero


def output_error(error: jax.Array, second_moment: jax.Array) -> jax.Array:
  """Mean squared error of the outputs, tr(E H E^T), float32 [].

  Args:
    error: difference of two matrices [out, in].
    second_moment: mean of x x^T over inputs x, [in, in].
  """
  return jnp.sum(
      jnp.matmul(error, second_moment, precision=jax.lax.Precision.HIGHEST)
      * error)


def check_calibration(
    rows: jax.Array, second_moment: jax.Array, group: int) -> None:
  """Raises ValueError for shapes or a group size that make no sense."""
  inputs = rows.shape[-1]
  if rows.ndim != 2 or second_moment.shape != (inputs, inputs):
    raise ValueError(
        f'Got weights {rows.shape} and a second moment {second_moment.shape}:'
        ' wanted [out, in] and [in, in]. Use jax.vmap for stacks of matrices.')
  if group < 1:
    raise ValueError(
        f'The group is {group} inputs: wanted at least 1. Enlarge it.')
