"""From a leaf as it lies in memory to a scheme's blocks, and back.

Our weights are input-first, so blocks of a row lie along an axis that is not
the last: where rows are cut into whole blocks they are blocked by a reshape,
and quantized in one pass over memory. Otherwise the leaf is brought into torch
order, where blocks may straddle rows.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp

from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.runtime import memory
from mansu_jax.runtime import sharding


def fake_quantize(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> jax.Array:
  """Quantizes and decodes a leaf; its shape and dtype."""
  def quantize(part, layout):
    blocks, shape, back, own = _cut(part, scheme, layout)
    return back(own.snap(blocks, own.share(blocks, shape))).astype(leaf.dtype)

  return _by_matrix(quantize, leaf, layout)


def scales(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> scheme_lib.Shared:
  """What the blocks of a leaf share, [batch..., n, 1, m] in torch's order."""
  return _shares(leaf, scheme, layout, lambda part, spread, thin: part)


def share(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> scheme_lib.Shared:
  """What the blocks of a leaf share, one entry for each run of `runs`."""
  return _shares(
      leaf, scheme, layout, lambda part, spread, thin: spread(part)[thin])


def _shares(leaf, scheme, layout, form):
  """What blocks share; `form(part, spread over the leaf, thinning slices)`."""
  def of_part(leaf, layout):
    blocks, shape, back, own = _cut(leaf, scheme, layout)
    spread = lambda x: back(jnp.broadcast_to(x, blocks.shape))
    thin = tuple(
        slice(None, None, run) for run in runs(leaf.shape, scheme, layout))
    return jax.tree.map(
        lambda x: form(x, spread, thin), own.share(blocks, shape))

  return _by_matrix(of_part, leaf, layout)


def runs(
    shape: tuple[int, ...], scheme: scheme_lib.Scheme,
    layout: layout_lib.BlockLayout) -> tuple[int, ...]:
  """How many neighbours along each axis of a leaf lie in one block.

  Along the last column axis, where a multiple of them makes up the block and
  the axis; 1 along all others.
  """
  *_, columns = layout_lib.rows_shape(shape, layout)
  axis = layout.memory.index(layout.inp[-1])
  run = math.gcd(
      scheme.for_columns(columns).block_length(columns), shape[axis])
  return tuple(run if i == axis else 1 for i in range(len(shape)))


def encode(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> scheme_lib.Codes:
  """Codes of a leaf, each field of its shape."""
  def encode_part(part, layout):
    blocks, shape, back, own = _cut(part, scheme, layout)
    return jax.tree.map(back, own.encode_blocks(blocks, shape))

  return _by_matrix(encode_part, leaf, layout)


def _by_matrix(
    run: Callable[[jax.Array, layout_lib.BlockLayout], Any], leaf: jax.Array,
    layout: layout_lib.BlockLayout) -> Any:
  """Runs a stack whole, or a matrix at a time where a device has less room.

  No block is of two matrices. What is made on the way is up to three times as
  large as the stack in float32.
  """
  size = 3 * 4 * leaf.size / sharding.num_weight_shards()
  if size <= memory.SHARE * memory.device_bytes() or (
      layout.batch != layout.memory[:1]):
    return run(leaf, layout)
  one = layout.unbatched()
  return jax.lax.map(lambda matrix: run(matrix, one), leaf)


def _cut(leaf, scheme, layout) -> tuple[
    jax.Array, tuple[int, ...], Callable[[jax.Array], jax.Array],
    scheme_lib.Scheme]:
  """float32 blocks, shape of the rows, the way back, and the leaf's scheme."""
  shape = layout_lib.rows_shape(leaf.shape, layout)
  *batch, out, columns = shape
  scheme = scheme.for_columns(columns)
  size = scheme.block_size(columns)
  if size and layout.is_input_first:
    blocks = leaf.reshape(*batch, columns // size, size, out)
    back = lambda x: x.reshape(leaf.shape)
  else:
    blocks = scheme.split(layout_lib.to_rows(leaf, layout))
    back = lambda x: layout_lib.from_rows(
        scheme.join(x, shape), layout, leaf.shape)
  return blocks.astype(jnp.float32), shape, back, scheme
