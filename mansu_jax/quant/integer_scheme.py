"""Symmetric integer quantization along a row of the torch matrix.

A row of the [out, in] matrix, or each group of `group` weights in it, is
divided by absmax / `largest` and rounded, ties to even. Codes are uint8 with an
offset: code 0 represents `-largest`.
"""

from __future__ import annotations

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise
from mansu_jax.quant import scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerScheme(scheme.Scheme):
  """INT8, INT4 and their variants.

  Attributes:
    name: name in flags and records.
    largest: largest integer; the smallest is -largest.
    group: number Q of weights that share a scale; None for a whole row.
  """

  largest: int
  group: int | None = None

  @property
  def description(self):
    return {
        'code_book': f'integers -{self.largest} to {self.largest}, absmax /'
                     f' {self.largest}',
        'block': self.group or 'an output row', 'double_quantization': False}

  def block_length(self, columns):
    return self.group or columns

  def split(self, rows: jax.Array) -> jax.Array:
    if self.group is None:
      return rows[..., None, :, None]
    return blockwise.split(rows, self.group)

  def join(self, blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return blockwise.join(blocks, shape[-1])

  def fit(self, blocks, shape):
    del shape  # A partial last group is scaled like the others.
    return scheme.Shared(blockwise.absmax(blocks))

  def encode_at(self, values, shared):
    step = self._step(shared.scale)
    scaled = blockwise.divide(values, jnp.where(step == 0, 1, step))
    rounded = lax.round(scaled, lax.RoundingMethod.TO_NEAREST_EVEN)
    integer = jnp.clip(rounded, -self.largest, self.largest)
    return (integer + self.largest).astype(jnp.uint8)

  def decode(self, code, shared):
    return self._integer(code) * self._step(shared.scale)

  def level(self, code):
    return code

  @property
  def levels(self):
    return np.arange(-self.largest, self.largest + 1) / np.float32(self.largest)

  def boundaries(self, code, shared):
    integer, step = self._integer(code), self._step(shared.scale)
    lo = jnp.where(integer > -self.largest, (integer - 0.5) * step, -jnp.inf)
    hi = jnp.where(integer < self.largest, (integer + 0.5) * step, jnp.inf)
    return lo, hi

  def _integer(self, code):
    return code.astype(jnp.float32) - self.largest

  def _step(self, scale):
    return blockwise.divide(scale, self.largest)
