"""What every quantization scheme of this package offers.

A scheme turns a matrix in torch order into codes and a scale a block. All of
its arithmetic is elementwise once the scale of an entry is known, so the same
code serves whole matrices and single weights whose scale is held fixed.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise


class Codes(NamedTuple):
  """Codes of a matrix, each field of its shape [batch..., out, in]."""

  code: jax.Array  # uint8
  scale: jax.Array  # float32, the absmax of the entry's block
  frozen: jax.Array  # bool, the entry sets its block's absmax
  tail: jax.Array | None  # bool, the entry is in a partial last block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme(abc.ABC):
  """A block quantizer whose blocks are scaled by their largest magnitude.

  Hashable, so that it can be a static argument of jit. `tail` is everywhere
  a broadcastable bool array or None: bitsandbytes scales the entries of a
  partial last block by another formula.

  Attributes:
    name: the name in flags and records, e.g. 'nf4'.
  """

  name: str

  @abc.abstractmethod
  def split(self, rows: jax.Array) -> jax.Array:
    """Cuts [batch..., out, in] into blocks [..., Q], padded with zeros."""

  @abc.abstractmethod
  def join(self, blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `split`; `shape` is that of the rows."""

  @abc.abstractmethod
  def tail(self, shape: tuple[int, ...]) -> np.ndarray | None:
    """Blocks [..., 1] of rows of this shape that are partial; None: none."""

  @abc.abstractmethod
  def encode_at(
      self, values: jax.Array, scale: jax.Array, tail: jax.Array | None = None
  ) -> jax.Array:
    """Codes (uint8) of values (float32) in blocks of absmax `scale`."""

  @abc.abstractmethod
  def decode(self, code: jax.Array, scale: jax.Array) -> jax.Array:
    """Values (float32) of codes in blocks of absmax `scale`."""

  @abc.abstractmethod
  def level(self, code: jax.Array) -> jax.Array:
    """Place (uint8) of the code's value among the distinct ones, ascending."""

  @abc.abstractmethod
  def boundaries(
      self, code: jax.Array, scale: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Ends (float32) of the interval in which the decoded value stays.

    Infinite outward of an end code, since larger values are clipped to it.
    """

  def snap(
      self, values: jax.Array, scale: jax.Array, tail: jax.Array | None = None
  ) -> jax.Array:
    """Values (float32) after quantization in blocks of absmax `scale`."""
    return self.decode(self.encode_at(values, scale, tail), scale)

  def encode(self, rows: jax.Array) -> Codes:
    """Quantizes a matrix [batch..., out, in]."""
    blocks = self.split(rows.astype(jnp.float32))
    scale = blockwise.absmax(blocks)  # [..., 1]
    tail = self.tail(rows.shape)
    sets_scale = (
        blockwise.magnitude_bits(blocks) == blockwise.magnitude_bits(scale))
    join = lambda x: self.join(jnp.broadcast_to(x, blocks.shape), rows.shape)
    return Codes(
        code=join(self.encode_at(blocks, scale, tail)), scale=join(scale),
        frozen=join(sets_scale), tail=None if tail is None else join(tail))

  def fake_quantize(self, rows: jax.Array) -> jax.Array:
    """Quantizes and decodes a matrix [batch..., out, in]; float32."""
    blocks = self.split(rows.astype(jnp.float32))
    scale = blockwise.absmax(blocks)
    snapped = self.snap(blocks, scale, self.tail(rows.shape))
    return self.join(snapped, rows.shape)
