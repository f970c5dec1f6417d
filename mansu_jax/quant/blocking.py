"""Cuts a leaf into the blocks of a scheme, in place where possible.

Our weights are input-first, so the blocks of a row lie along an axis that is
not the last. Where whole blocks make up a row, a reshape gives the blocks, and
one pass over memory quantizes the leaf. Otherwise the leaf is transposed to
torch order, in which a block may span two rows.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp

from mansu_jax.quant import devices
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.runtime import memory


def fake_quantize(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> jax.Array:
  """Quantizes and decodes a leaf; keeps its shape and dtype."""
  def quantize(part, layout):
    blocks, shape, uncut, scheme_of_rows = _cut(part, scheme, layout)
    shared = scheme_of_rows.fit(blocks, shape)
    return uncut(scheme_of_rows.snap(blocks, shared)).astype(leaf.dtype)

  return _map_matrices(quantize, leaf, layout)


def block_params(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> scheme_lib.Shared:
  """Block parameters of a leaf, [batch..., n, 1, m] in torch's order."""
  return _fit(leaf, scheme, layout, lambda part, spread, thin: part)


def run_params(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> scheme_lib.Shared:
  """Block parameters of a leaf, one entry for each run of `runs`."""
  return _fit(
      leaf, scheme, layout, lambda part, spread, thin: spread(part)[thin])


def _fit(leaf, scheme, layout, select):
  """Fits block parameters and applies `select(parameter, spread, thin)`.

  `spread` repeats a parameter over the leaf; `thin` slices one entry a run.
  """
  def fit_part(leaf, layout):
    blocks, shape, uncut, scheme_of_rows = _cut(leaf, scheme, layout)
    spread = lambda x: uncut(jnp.broadcast_to(x, blocks.shape))
    thin = tuple(
        slice(None, None, run) for run in runs(leaf.shape, scheme, layout))
    return jax.tree.map(
        lambda x: select(x, spread, thin), scheme_of_rows.fit(blocks, shape))

  return _map_matrices(fit_part, leaf, layout)


def runs(
    shape: tuple[int, ...], scheme: scheme_lib.Scheme,
    layout: layout_lib.BlockLayout) -> tuple[int, ...]:
  """Number of neighbours along each axis of a leaf that lie in one block.

  Along the last column axis it is the greatest length that divides both the
  block and the axis; along all other axes it is 1.
  """
  *_, columns = layout_lib.rows_shape(shape, layout)
  axis = layout.memory.index(layout.inp[-1])
  run = math.gcd(
      scheme.for_columns(columns).block_length(columns), shape[axis])
  return tuple(run if i == axis else 1 for i in range(len(shape)))


def encode(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout
) -> scheme_lib.Codes:
  """Codes of a leaf; each field has the shape of the leaf."""
  def encode_part(part, layout):
    blocks, shape, uncut, scheme_of_rows = _cut(part, scheme, layout)
    return jax.tree.map(uncut, scheme_of_rows.encode_blocks(blocks, shape))

  return _map_matrices(encode_part, leaf, layout)


def _map_matrices(
    run: Callable[[jax.Array, layout_lib.BlockLayout], Any], leaf: jax.Array,
    layout: layout_lib.BlockLayout) -> Any:
  """Runs on a whole stack, or on one matrix at a time if memory is short.

  No block spans two matrices. Temporaries take up to three times the memory of
  the stack in float32.
  """
  size = 3 * 4 * leaf.size / devices.weight_parts()
  if size <= memory.SHARE * memory.device_bytes() or (
      layout.batch != layout.memory[:1]):
    return run(leaf, layout)
  one = layout.unbatched()
  return jax.lax.map(lambda matrix: run(matrix, one), leaf)


def _cut(leaf, scheme, layout) -> tuple[
    jax.Array, tuple[int, ...], Callable[[jax.Array], jax.Array],
    scheme_lib.Scheme]:
  """float32 blocks, shape of the rows, inverse, and the scheme of the rows."""
  shape = layout_lib.rows_shape(leaf.shape, layout)
  *batch, out, columns = shape
  scheme = scheme.for_columns(columns)
  size = scheme.block_size(columns)
  if size and layout.is_input_first:
    blocks = leaf.reshape(*batch, columns // size, size, out)
    uncut = lambda x: x.reshape(leaf.shape)
  else:
    blocks = scheme.split(layout_lib.to_rows(leaf, layout))
    uncut = lambda x: layout_lib.from_rows(
        scheme.join(x, shape), layout, leaf.shape)
  return blocks.astype(jnp.float32), shape, uncut, scheme
