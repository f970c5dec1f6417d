"""IEEE float32 products and quotients that XLA would flush to zero.

bitsandbytes computes with float32 subnormals; XLA flushes them to zero. This
matters only for blocks whose absmax is tiny (the scaled table has subnormals)
or huge (1 / absmax is subnormal), and for the choice between FP4's two zeros.
The functions here represent a number as `fraction * 2**exponent` with a
fraction in [1, 2), and round to subnormals by integer arithmetic. They are
several times slower than plain arithmetic, so callers first call `any_extreme`.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise

# For scales in this range, no product or quotient here is subnormal.
SMALLEST_ORDINARY = np.float32(2.0**-60)
LARGEST_ORDINARY = np.float32(2.0**60)
# Lower bound of the absmax of a full block in bitsandbytes; it is subnormal.
_LEAST_SCALE_BITS = np.float32(1e-38).view(np.int32)
_ONE_BITS = np.float32(1).view(np.int32)


def any_extreme(x: jax.Array) -> jax.Array:
  """Whether any entry is neither zero nor within 2**-60 to 2**60; bool []."""
  bits = blockwise.magnitude_bits(x)
  small = (bits > 0) & (bits < SMALLEST_ORDINARY.view(np.int32))
  return jnp.any(small | (bits > LARGEST_ORDINARY.view(np.int32)))


def normalize(
    values: jax.Array, scale: jax.Array, tail: jax.Array | None
) -> jax.Array:
  """x / absmax by the formulas of bitsandbytes, with subnormals.

  A result under 2**-126 is returned as 2**-126 with its sign, or as zero if
  IEEE arithmetic gives zero: callers only compare it with thresholds.
  """
  fraction, exponent = _decompose(values)
  clamped = jnp.maximum(blockwise.magnitude_bits(scale), _LEAST_SCALE_BITS)
  inverse, inverse_exponent = _reciprocal(_from_bits(clamped))
  full = _compose(fraction * inverse, exponent + inverse_exponent)
  if tail is None:
    return full
  divisor, divisor_exponent = _decompose(scale)
  quotient = fraction / jnp.where(divisor == 0, 1, divisor)
  return jnp.where(
      tail, _compose(quotient, exponent - divisor_exponent), full)


def multiply(value: jax.Array, scale: jax.Array) -> jax.Array:
  """`value * scale` for |value| = 0 or in [2**-8, 1] and any scale."""
  fraction, exponent = _decompose(jnp.abs(scale))
  product = jnp.abs(value) * fraction
  bits = blockwise.magnitude_bits(product) + (exponent << 23)
  magnitude = jnp.where(
      bits >= 0x800000, bits, _subnormal_product(value, fraction, exponent))
  magnitude = jnp.where(product == 0, 0, magnitude)
  sign = (_bits(value) ^ _bits(scale)) & np.int32(-(2**31))
  return _from_bits(magnitude | sign)


def _subnormal_product(value, fraction, exponent):
  """Bits of |value| * fraction * 2**exponent if the product is subnormal."""
  # The scale in units of 2**-149, the subnormal step: an integer under 2**31.
  unit = jnp.clip(exponent + 149, 0, 30)
  count = fraction * _power_of_two(unit)
  steps = jnp.abs(value) * count
  below = jnp.floor(steps)
  # If the rounded product ends in one half, the exact product may lie above or
  # below. mantissa * count / 2**shift is exact; modulo 2**32 it is comparable.
  mantissa = (blockwise.magnitude_bits(value) & 0x7FFFFF) | 0x800000
  shift = 23 - _exponent(blockwise.magnitude_bits(value))
  excess = (
      2 * mantissa.astype(jnp.uint32) * count.astype(jnp.uint32)
      - ((2 * below.astype(jnp.uint32) + 1) << shift.astype(jnp.uint32)))
  excess = lax.bitcast_convert_type(excess, jnp.int32)
  at_half = (steps - below == 0.5) & (excess != 0)
  rounded = jnp.where(
      at_half, below + (excess > 0), lax.round(
          steps, lax.RoundingMethod.TO_NEAREST_EVEN))
  return rounded.astype(jnp.int32)


def _reciprocal(x):
  """1 / x for x > 0, rounded as in IEEE float32, as (fraction, exponent)."""
  fraction, exponent = _decompose(x)
  inverse = 1 / fraction  # In (0.5, 1].
  # For x >= 2**126 the result is subnormal: a multiple of 2**-149.
  steps = inverse * _power_of_two(jnp.clip(149 - exponent, 0, 24))
  below = jnp.floor(steps)
  mantissa = (blockwise.magnitude_bits(fraction) & 0x7FFFFF) | 0x800000
  # 1 / x is 2**(172 - exponent) / mantissa steps. It exceeds below + 1/2 if
  # (2 * below + 1) * mantissa is less than a power of 2 that is 0 mod 2**32.
  shortfall = (
      (2 * below.astype(jnp.uint32) + 1) * mantissa.astype(jnp.uint32))
  shortfall = lax.bitcast_convert_type(shortfall, jnp.int32)
  coarse, coarse_exponent = _decompose(below + (shortfall < 0))
  is_normal = exponent < 126
  return (
      jnp.where(is_normal, inverse, coarse),
      jnp.where(is_normal, -exponent, coarse_exponent - 149))


def _decompose(x):
  """Float32 x as (fraction, exponent), x = fraction * 2**exponent."""
  bits = blockwise.magnitude_bits(x)
  # The bits of a subnormal count steps of 2**-149; as a float they are normal.
  wide = blockwise.magnitude_bits(bits.astype(jnp.float32))
  is_subnormal = bits < 0x800000
  exponent = jnp.where(is_subnormal, _exponent(wide) - 149, _exponent(bits))
  mantissa = jnp.where(is_subnormal, wide, bits) & 0x7FFFFF
  sign = lax.bitcast_convert_type(x, jnp.int32) & np.int32(-(2**31))
  fraction = _from_bits(mantissa | _ONE_BITS | sign)
  is_zero = bits == 0
  return jnp.where(is_zero, 0, fraction), jnp.where(is_zero, 0, exponent)


def _compose(fraction, exponent):
  """fraction * 2**exponent, with its magnitude clipped to the normal range."""
  value = fraction * _power_of_two(jnp.clip(exponent, -120, 120))
  least = jnp.sign(fraction) * np.float32(2.0**-126)
  # IEEE rounds 2**-150 and less to zero.
  vanishes = jnp.abs(fraction) * _power_of_two(
      jnp.clip(exponent + 150, -120, 120)) <= 1
  small = jnp.where(vanishes, 0, least)
  return jnp.where(exponent < -120, small, value)


def _exponent(bits):
  return (bits >> 23) - 127


def _power_of_two(exponent):
  return _from_bits((exponent + 127) << 23)


def _bits(x):
  return lax.bitcast_convert_type(x, jnp.int32)


def _from_bits(bits):
  return lax.bitcast_convert_type(bits, jnp.float32)
