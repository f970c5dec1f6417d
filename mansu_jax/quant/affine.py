"""Asymmetric 4-bit integers along the input: code, scale and zero point.

GPTQ and AWQ checkpoints use this format. Each group of weights in a row of the
torch [out, in] matrix covers its range, extended to include zero, with 16
integers: value = (code - zero) * scale. AutoGPTQ does the same. AutoAWQ does
not extend a range of one sign and then clips the zero point, which clips the
largest weights. Both store scales in float16; here they are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise

LARGEST = 15  # Codes are 0 to 15.
# A group with a smaller range counts as zeros: its scale might be subnormal.
_LEAST_SPAN = np.float32(2.0**-100)


class AffineCodes(NamedTuple):
  """Codes of a matrix as in checkpoints: little more than a byte a weight.

  All arrays may have leading batch axes.
  """

  code: jax.Array  # uint8 [out, in], 0 to 15
  scale: jax.Array  # float32 [out, G], distance between neighbouring values
  zero: jax.Array  # uint8 [out, G], code of the value 0, 0 to 15
  group: jax.Array  # int32 [in], index of the group of each input
  divisor: jax.Array | None = None  # float32 [in], input scales of AWQ


def fit(values: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  """Scale and zero point of groups along an axis, which gets size 1.

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
  """Nearest codes (uint8) of values (float32); ties to even."""
  code = jnp.round(values / scale) + zero
  return jnp.clip(code, 0, LARGEST).astype(jnp.uint8)


def value(code: jax.Array, scale: jax.Array, zero: jax.Array) -> jax.Array:
  """Values (float32) of codes; the arrays are broadcast."""
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
  """Codes minus the zero point, int8 [..., out, in]."""
  _, zero = spread(codes)
  return codes.code.astype(jnp.int8) - zero.astype(jnp.int8)


def boundaries(codes: AffineCodes) -> tuple[jax.Array, jax.Array]:
  """Ends (float32) [..., out, in] of the interval of each code at its scale.

  Infinite beyond an end code. GPTQ compensates rounding errors, so a weight may
  lie outside the interval of its code.
  """
  scale, zero = spread(codes)
  end = lambda shift: value(codes.code.astype(jnp.float32) + shift, scale, zero)
  return (jnp.where(codes.code == 0, -jnp.inf, end(-0.5)),
          jnp.where(codes.code == LARGEST, jnp.inf, end(0.5)))


def round_to_nearest(rows: jax.Array, *, group: int = 128) -> AffineCodes:
  """Quantizes a float32 matrix [batch..., out, in] without calibration.

  Args:
    rows: weights in torch order.
    group: number of inputs that share a scale; the last group of a row may be
      partial.
  """
  inputs = rows.shape[-1]
  code, scale, zero = _round_blocks(rows, group)
  flat = lambda x: x[..., 0, 0]
  return AffineCodes(
      blockwise.join(code, inputs), flat(scale),
      flat(zero).astype(jnp.uint8), jnp.broadcast_to(
          jnp.arange(inputs) // group, (*rows.shape[:-2], inputs)))


def fake_quantize(rows: jax.Array, *, group: int = 128) -> jax.Array:
  """Decoded values (float32) of `round_to_nearest`, without the codes."""
  return blockwise.join(value(*_round_blocks(rows, group)), rows.shape[-1])


def _round_blocks(
    rows: jax.Array, group: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Codes [..., out, G, Q, 1], scales and zero points [..., out, G, 1, 1]."""
  blocks = blockwise.split(rows, group)  # Padding with 0 extends no range.
  scale, zero = fit(blocks, axis=-2)
  return encode(blocks, scale, zero), scale, zero


def output_error(error: jax.Array, second_moment: jax.Array) -> jax.Array:
  """Mean squared error of the outputs, tr(E H E^T), float32 [].

  Args:
    error: difference E of two matrices [out, in].
    second_moment: mean H of x x^T over inputs x, [in, in].
  """
  return jnp.sum(
      jnp.matmul(error, second_moment, precision=jax.lax.Precision.HIGHEST)
      * error)


def check_calibration(
    rows: jax.Array, second_moment: jax.Array, group: int) -> None:
  """Raises ValueError for inconsistent shapes or a group size below 1."""
  inputs = rows.shape[-1]
  if rows.ndim != 2 or second_moment.shape != (inputs, inputs):
    raise ValueError(
        f'Got weights {rows.shape} and a second moment {second_moment.shape};'
        ' wanted [out, in] and [in, in]. Use jax.vmap for stacks of matrices.')
  if group < 1:
    raise ValueError(
        f'The group is {group} inputs; wanted at least 1.')
