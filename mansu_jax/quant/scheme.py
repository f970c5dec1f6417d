"""What every quantization scheme of this package offers.

A scheme turns a matrix in torch order into codes and, for each block, what its
entries share. All of its arithmetic is elementwise once that is known, so the
same code serves whole matrices and single weights whose scale is held fixed.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise


class Shared(NamedTuple):
  """What the entries of a block share, by block or broadcast to entries.

  `stored` and `stored_offset` are what decodes: a format may keep its scale
  more coarsely than it encodes by.
  """

  scale: Any  # float32; what sets the scale, e.g. the absmax
  offset: Any = None  # float32 lower end; None: the scheme is symmetric
  stored: Any = None  # float32 scale as the file holds it; None: `scale`
  stored_offset: Any = None  # float32; None: `offset`
  tail: Any = None  # bool, the block is partial; None: no block is


class Codes(NamedTuple):
  """Codes of a matrix, each field of its shape [batch..., out, in]."""

  code: jax.Array  # uint8
  frozen: jax.Array  # bool, the entry sets a scale and must not move
  shared: Shared

  @property
  def scale(self) -> jax.Array:
    """What sets the scale of the entry's block, float32."""
    return self.shared.scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme(abc.ABC):
  """A block quantizer: codes, and values that depend on code and block alone.

  Hashable, so that it can be a static argument of jit.

  Attributes:
    name: the name in flags and records, e.g. 'nf4'.
  """

  name: str

  @property
  def holds_scale(self) -> bool:
    """Whether a block's scale stays while its `frozen` entries do.

    Only then can the magnitude floor promise what the quantizer will make of
    an edit. Where the scale is found by a search over all entries it is False.
    """
    return True

  def unnamed(self) -> Scheme:
    """The same for all names of one quantizer."""
    return dataclasses.replace(self, name='')

  @property
  @abc.abstractmethod
  def description(self) -> dict[str, Any]:
    """For records: code book, weights a scale, double quantization."""

  def for_columns(self, columns: int) -> Scheme:
    """The scheme that a matrix of rows of this length gets; mostly self."""
    del columns
    return self

  def ordinary(self) -> Scheme:
    """The same, for blocks whose scales are known to be of ordinary size."""
    return self

  @property
  def keeps_centres(self) -> bool:
    """Whether every decoded value encodes to its own code and is in `extent`.

    True only where float32 arithmetic is known to have it so, bit for bit.
    """
    return False

  @abc.abstractmethod
  def block_length(self, columns: int) -> int:
    """Weights in a whole block of rows of this length."""

  def block_size(self, columns: int) -> int | None:
    """As `block_length`, where rows are cut into whole blocks; else None."""
    length = self.block_length(columns)
    return None if columns % length else length

  @abc.abstractmethod
  def split(self, rows: jax.Array) -> jax.Array:
    """Cuts [batch..., out, in] into blocks [..., Q, 1], padded with zeros."""

  @abc.abstractmethod
  def join(self, blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `split`; `shape` is that of the rows."""

  @abc.abstractmethod
  def share(self, blocks: jax.Array, shape: tuple[int, ...]) -> Shared:
    """What each block shares, [..., 1, m] of float32 blocks [..., Q, m].

    Args:
      blocks: those of a matrix, in torch order; or of several matrices.
      shape: that of the rows, [batch..., out, in].
    """

  @abc.abstractmethod
  def encode_at(self, values: jax.Array, shared: Shared) -> jax.Array:
    """Codes (uint8) of values (float32) in blocks that share this."""

  @abc.abstractmethod
  def decode(self, code: jax.Array, shared: Shared) -> jax.Array:
    """Values (float32) of codes in blocks that share this."""

  @abc.abstractmethod
  def level(self, code: jax.Array) -> jax.Array:
    """Place (uint8) of the code's value among the distinct ones.

    Ascending where the scale is positive.
    """

  @abc.abstractmethod
  def boundaries(
      self, code: jax.Array, shared: Shared
  ) -> tuple[jax.Array, jax.Array]:
    """Ends (float32) of the interval in which the decoded value stays.

    Infinite outward of an end code, since larger values are clipped to it.
    """

  @property
  @abc.abstractmethod
  def levels(self) -> np.ndarray:
    """The distinct values [n] of the codes where the scale is 1; ascending."""

  def sets_scale(self, blocks: jax.Array, shared: Shared) -> jax.Array:
    """Which entries (bool) of the blocks set what they share."""
    return (blockwise.magnitude_bits(blocks)
            == blockwise.magnitude_bits(shared.scale))

  def extent(self, shared: Shared) -> tuple[jax.Array, jax.Array]:
    """Least and largest value (float32) that leave the scale as it is."""
    return -shared.scale, shared.scale

  def snap(self, values: jax.Array, shared: Shared) -> jax.Array:
    """Values (float32) after quantization in blocks that share this."""
    return self.decode(self.encode_at(values, shared), shared)

  def encode_blocks(
      self, blocks: jax.Array, shape: tuple[int, ...]) -> Codes:
    """Quantizes float32 blocks; fields have their shape. As for `share`."""
    shared = self.share(blocks, shape)
    spread = lambda x: jnp.broadcast_to(x, blocks.shape)
    return Codes(
        code=self.encode_at(blocks, shared),
        frozen=self.sets_scale(blocks, shared),
        shared=jax.tree.map(spread, shared))

  def encode(self, rows: jax.Array) -> Codes:
    """Quantizes a matrix [batch..., out, in]."""
    blocks = self.split(rows.astype(jnp.float32))
    return jax.tree.map(lambda x: self.join(x, rows.shape),
                        self.encode_blocks(blocks, rows.shape))

  def fake_quantize(self, rows: jax.Array) -> jax.Array:
    """Quantizes and decodes a matrix [batch..., out, in]; float32."""
    blocks = self.split(rows.astype(jnp.float32))
    snapped = self.snap(blocks, self.share(blocks, rows.shape))
    return self.join(snapped, rows.shape)


# A scheme is static: eager calls compile once a shape, traced ones inline.
compiled = functools.partial(jax.jit, static_argnums=0)
