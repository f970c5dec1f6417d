"""From a leaf as it lies in memory to a scheme's blocks, and back.

Our weights are input-first, so blocks of a row lie along an axis that is not
the last: where rows are cut into whole blocks they are blocked by a reshape,
and quantized in one pass over memory. Otherwise the leaf is brought into torch
order, where blocks may straddle rows.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import scheme as scheme_lib


def fake_quantize(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> jax.Array:
  """Quantizes and decodes a leaf; its shape, float32."""
  blocks, shape, back, scheme = _cut(leaf, scheme, layout)
  return back(scheme.snap(blocks, scheme.share(blocks, shape)))


def encode(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> scheme_lib.Codes:
  """Codes of a leaf, each field of its shape."""
  blocks, shape, back, scheme = _cut(leaf, scheme, layout)
  return jax.tree.map(back, scheme.encode_blocks(blocks, shape))


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
