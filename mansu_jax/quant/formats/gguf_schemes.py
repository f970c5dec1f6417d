"""The plain block formats of llama.cpp: Q4_0, Q4_1, Q5_0, Q8_0.

A row of the torch matrix is cut into blocks of 32. The scale is stored in
float16, but weights are encoded with the scale before this rounding. Results
equal those of the `gguf` package's NumPy code (0.19) to the last bit for blocks
whose largest magnitude exceeds 1e-30; below, XLA flushes subnormals.
"""

from __future__ import annotations

import abc
import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme

BLOCK = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufScheme(scheme.Scheme):
  """Cuts rows into blocks; codes count equal steps from the lowest value.

  Attributes:
    name: name in flags and records.
    bits: number of bits of a code.
  """

  bits: int

  @property
  def description(self):
    return {'code_book': f'{self.name.upper()} (llama.cpp)', 'block': BLOCK,
            'double_quantization': False}

  def for_columns(self, columns):
    if columns % BLOCK:
      raise ValueError(
          f'{self.name} has blocks of {BLOCK} weights, but the rows have'
          f' {columns}; wanted a multiple of {BLOCK}. llama.cpp keeps such a'
          ' matrix in float16: use another quantizer.')
    return self

  def block_length(self, columns):
    return BLOCK

  def split(self, rows):
    return blockwise.split(rows, BLOCK)

  def join(self, blocks, shape):
    return blocks.reshape(shape)

  def level(self, code):
    return code

  @property
  def top(self) -> int:
    """The largest code."""
    return 2**self.bits - 1

  @abc.abstractmethod
  def step(self, shared: scheme.Shared) -> jax.Array:
    """Distance between neighbouring codes, unrounded; may be negative."""

  @abc.abstractmethod
  def lower_end(self, shared: scheme.Shared) -> jax.Array:
    """Lower end of the interval of code 1."""

  def boundaries(self, code, shared):
    step, first = self.step(shared), self.lower_end(shared)
    code = code.astype(jnp.float32)
    infinity = jnp.where(step < 0, -jnp.inf, jnp.inf)
    below = jnp.where(code == 0, -infinity, first + (code - 1) * step)
    above = jnp.where(code == self.top, infinity, first + code * step)
    return jnp.minimum(below, above), jnp.maximum(below, above)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignedMaxScheme(GgufScheme):
  """Q4_0 and Q5_0: the weight of largest magnitude gets the lowest code.

  `shared.scale` is this weight, with its sign.
  """

  @property
  def _zero(self) -> int:
    """The code of 0."""
    return 2**(self.bits - 1)

  def fit(self, blocks, shape):
    del shape
    absmax = blockwise.absmax(blocks)
    # The sign of the first weight of largest magnitude, without a gather.
    early = jnp.broadcast_to(
        2 * jnp.arange(blocks.shape[-2], 0, -1)[:, None], blocks.shape)
    rank = jnp.where(jnp.abs(blocks) == absmax, early + (blocks >= 0), 0)
    first = jnp.max(rank, axis=-2, keepdims=True)
    shared = scheme.Shared(jnp.where(first % 2 == 1, absmax, -absmax))
    return shared._replace(stored=float16(self.step(shared)))

  def step(self, shared):
    return shared.scale / np.float32(-self._zero)  # Exact: a power of two.

  def lower_end(self, shared):
    return (0.5 - self._zero) * self.step(shared)

  def encode_at(self, values, shared):
    return _count(
        values * _inverse(self.step(shared)), self._zero + 0.5, self.top)

  def decode(self, code, shared):
    return (code.astype(jnp.float32) - self._zero) * shared.stored

  def sets_scale(self, blocks, shared):
    return jnp.abs(blocks) == jnp.abs(shared.scale)

  def extent(self, shared):
    # A second weight of this magnitude could change the sign of the scale.
    bits = blockwise.magnitude_bits(shared.scale)
    largest = lax.bitcast_convert_type(jnp.maximum(bits - 1, 0), jnp.float32)
    return -largest, largest

  @property
  def levels(self):
    return np.arange(self.top + 1) / np.float32(self._zero) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffsetScheme(GgufScheme):
  """Q4_1: codes run from the smallest weight to the largest.

  `shared.offset` is the smallest weight, `shared.scale` the largest.
  """

  def fit(self, blocks, shape):
    del shape
    shared = scheme.Shared(
        jnp.max(blocks, axis=-2, keepdims=True),
        jnp.min(blocks, axis=-2, keepdims=True))
    return shared._replace(
        stored=float16(self.step(shared)),
        stored_offset=float16(shared.offset))

  def step(self, shared):
    return blockwise.divide(shared.scale - shared.offset, self.top)

  def lower_end(self, shared):
    return shared.offset + 0.5 * self.step(shared)

  def encode_at(self, values, shared):
    return _count(
        (values - shared.offset) * _inverse(self.step(shared)), 0.5, self.top)

  def decode(self, code, shared):
    # Exact product of 4 and 11 bits: a fused multiply-add gives the same.
    return code.astype(jnp.float32) * shared.stored + shared.stored_offset

  def sets_scale(self, blocks, shared):
    return (blocks == shared.scale) | (blocks == shared.offset)

  def extent(self, shared):
    return shared.offset, shared.scale

  @property
  def levels(self):
    return np.arange(self.top + 1) / np.float32(self.top)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedScheme(GgufScheme):
  """Q8_0: multiples of absmax / 127, with halves rounded away from zero.

  Codes are the integers plus 128; -128 is not used.
  """

  def fit(self, blocks, shape):
    del shape
    shared = scheme.Shared(blockwise.absmax(blocks))
    return shared._replace(stored=float16(self.step(shared)))

  @property
  def _largest(self) -> int:
    return 2**(self.bits - 1) - 1

  def step(self, shared):
    return blockwise.divide(shared.scale, self._largest)

  def lower_end(self, shared):
    return (0.5 - self._largest - 1) * self.step(shared)

  def encode_at(self, values, shared):
    scaled = values * _inverse(self.step(shared))
    size = jnp.abs(scaled)
    floor = jnp.floor(size)
    rounded = jnp.sign(scaled) * (floor + jnp.floor(2 * (size - floor)))
    integer = jnp.clip(rounded, -self._largest, self._largest)
    return (integer + (self._largest + 1)).astype(jnp.uint8)

  def decode(self, code, shared):
    return (code.astype(jnp.float32) - (self._largest + 1)) * shared.stored

  def boundaries(self, code, shared):
    lo, hi = super().boundaries(code, shared)
    return jnp.where(code == 1, -jnp.inf, lo), hi

  @property
  def levels(self):
    largest = self._largest
    return np.arange(-largest, largest + 1) / np.float32(largest)


def float16(x: jax.Array) -> jax.Array:
  """Rounds float32 values to float16, and returns them as float32."""
  return leaves.cast(x, jnp.float16).astype(jnp.float32)


def _inverse(step):
  return jnp.where(step == 0, 0, 1 / jnp.where(step == 0, 1, step))


def _count(scaled, half, top):
  """floor(scaled + half) with two float32 roundings, clipped to [0, top].

  Computed by comparisons, since XLA would fuse the product in `scaled` with the
  addition.
  """
  return blockwise.rank(scaled, _last_below(half, top))


@functools.cache
def _last_below(half: float, top: int) -> np.ndarray:
  """For each k in 1..top, the largest float32 x with x + half < k."""
  def one(k):
    x = np.float32(k - half)
    while x + np.float32(half) >= k:
      x = np.nextafter(x, np.float32(-np.inf))
    while np.nextafter(x, np.float32(np.inf)) + np.float32(half) < k:
      x = np.nextafter(x, np.float32(np.inf))
    return x

  return np.array([one(np.float32(k)) for k in range(1, top + 1)], np.float32)


Q4_0 = SignedMaxScheme(name='q4_0', bits=4)
Q5_0 = SignedMaxScheme(name='q5_0', bits=5)
Q4_1 = OffsetScheme(name='q4_1', bits=4)
Q8_0 = RoundedScheme(name='q8_0', bits=8)
