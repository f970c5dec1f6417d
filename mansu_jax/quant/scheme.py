"""The interface of the quantization schemes.

A scheme cuts a matrix in torch order into blocks, fits the parameters of each
block (a scale, perhaps an offset) and encodes the weights. Given the
parameters, all arithmetic is elementwise: the same code serves whole matrices
and single weights whose scale is held fixed.
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
  """Parameters that all weights of a block share.

  Arrays have one entry a block, or are broadcast to the weights. A format may
  round its scale for storage: weights are encoded with `scale` and decoded with
  `stored`.
  """

  scale: Any  # float32; the value that sets the scale, e.g. the absmax
  offset: Any = None  # float32 lower end; None: the scheme is symmetric
  stored: Any = None  # float32 scale as stored; None: equals `scale`
  stored_offset: Any = None  # float32 offset as stored; None: equals `offset`
  tail: Any = None  # bool, whether the block is partial; None: none is partial


class Codes(NamedTuple):
  """Codes of a matrix; each array has its shape [batch..., out, in]."""

  code: jax.Array  # uint8
  frozen: jax.Array  # bool, whether the weight sets a scale and must not move
  shared: Shared  # parameters of the block of each weight

  @property
  def scale(self) -> jax.Array:
    """The value that sets the scale of each weight's block, float32."""
    return self.shared.scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme(abc.ABC):
  """A block quantizer.

  The decoded value of a weight depends only on its code and its block's
  parameters. Schemes are hashable, so that they can be static arguments of jit.

  Attributes:
    name: name in flags and records, e.g. 'nf4'.
  """

  name: str

  @property
  def holds_scale(self) -> bool:
    """Whether freezing the `frozen` weights fixes the scale of their block.

    The magnitude floor requires it: only then does it know the codes that the
    quantizer will choose. It is False if all weights of a block determine its
    scale, as in a least-squares fit.
    """
    return True

  def unnamed(self) -> Scheme:
    """The scheme without its name; equal for aliases of one quantizer."""
    return dataclasses.replace(self, name='')

  @property
  @abc.abstractmethod
  def description(self) -> dict[str, Any]:
    """Code book, block size and double quantization, for records."""

  def for_columns(self, columns: int) -> Scheme:
    """The scheme for rows of this length; a fallback, or usually self."""
    del columns  # Most schemes take rows of any length.
    return self

  def ordinary(self) -> Scheme:
    """A faster scheme for blocks without extreme scales; see `extremes`."""
    return self

  @property
  def keeps_centres(self) -> bool:
    """Whether every decoded value encodes to its own code and is in `extent`.

    True only if this is known to hold bit for bit in float32 arithmetic.
    """
    return False

  @abc.abstractmethod
  def block_length(self, columns: int) -> int:
    """Number of weights in a full block, for rows of this length."""

  def block_size(self, columns: int) -> int | None:
    """`block_length` if full blocks make up a row; else None."""
    length = self.block_length(columns)
    return None if columns % length else length

  @abc.abstractmethod
  def split(self, rows: jax.Array) -> jax.Array:
    """Cuts [batch..., out, in] into blocks [..., Q, 1], padded with zeros."""

  @abc.abstractmethod
  def join(self, blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `split`; `shape` is the shape of the rows."""

  @abc.abstractmethod
  def fit(self, blocks: jax.Array, shape: tuple[int, ...]) -> Shared:
    """Fits the parameters [..., 1, m] of float32 blocks [..., Q, m].

    Args:
      blocks: blocks of one or several matrices, in torch order.
      shape: shape of the rows, [batch..., out, in].
    """

  @abc.abstractmethod
  def encode_at(self, values: jax.Array, shared: Shared) -> jax.Array:
    """Codes (uint8) of values (float32), given the block parameters."""

  @abc.abstractmethod
  def decode(self, code: jax.Array, shared: Shared) -> jax.Array:
    """Values (float32) of codes, given the block parameters."""

  @abc.abstractmethod
  def level(self, code: jax.Array) -> jax.Array:
    """Index (uint8) of the code's value among the distinct values.

    Values ascend with the index if the scale is positive.
    """

  @abc.abstractmethod
  def boundaries(
      self, code: jax.Array, shared: Shared
  ) -> tuple[jax.Array, jax.Array]:
    """Ends (float32) of the interval of values that decode as the code does.

    Infinite beyond an end code, since larger values are clipped to it.
    """

  @property
  @abc.abstractmethod
  def levels(self) -> np.ndarray:
    """The distinct code values [n] at scale 1, ascending."""

  def sets_scale(self, blocks: jax.Array, shared: Shared) -> jax.Array:
    """Which weights (bool) of the blocks set the block parameters."""
    return (blockwise.magnitude_bits(blocks)
            == blockwise.magnitude_bits(shared.scale))

  def extent(self, shared: Shared) -> tuple[jax.Array, jax.Array]:
    """Least and largest value (float32) that do not change the scale."""
    return -shared.scale, shared.scale

  def snap(self, values: jax.Array, shared: Shared) -> jax.Array:
    """Quantizes and decodes values (float32), given the block parameters."""
    return self.decode(self.encode_at(values, shared), shared)

  def encode_blocks(
      self, blocks: jax.Array, shape: tuple[int, ...]) -> Codes:
    """Codes of float32 blocks, in their shape; arguments as for `fit`."""
    shared = self.fit(blocks, shape)
    spread = lambda x: jnp.broadcast_to(x, blocks.shape)
    return Codes(
        code=self.encode_at(blocks, shared),
        frozen=self.sets_scale(blocks, shared),
        shared=jax.tree.map(spread, shared))

  def encode(self, rows: jax.Array) -> Codes:
    """Codes of a matrix [batch..., out, in]."""
    blocks = self.split(rows.astype(jnp.float32))
    return jax.tree.map(lambda x: self.join(x, rows.shape),
                        self.encode_blocks(blocks, rows.shape))

  def fake_quantize(self, rows: jax.Array) -> jax.Array:
    """Quantizes and decodes a matrix [batch..., out, in]; float32."""
    blocks = self.split(rows.astype(jnp.float32))
    snapped = self.snap(blocks, self.fit(blocks, rows.shape))
    return self.join(snapped, rows.shape)


# Jit for methods of a scheme, which is a static argument.
compiled = functools.partial(jax.jit, static_argnums=0)
