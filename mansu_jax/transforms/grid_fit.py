"""Checks that code grids were made from the params."""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax.quant import blockwise
from mansu_jax.quant import devices
from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.transforms import landing


def align(
    grids: Sequence[grids_lib.CodeGrid], params: optax.Params,
    storage_dtype: np.dtype) -> list[optax.Params]:
  """Brings the leaves of each grid into the structure of the params.

  Args:
    grids: grids of theta_0.
    params: theta_0.
    storage_dtype: dtype of the export.

  Returns:
    A tree of `LeafGrid` and None for each grid.

  Raises:
    ValueError: a grid does not fit the params, or concrete params have other
      scales than the grid.
  """
  aligned = [grids_lib.align_grid(grid, params) for grid in grids]
  for grid, tree in zip(grids, aligned):
    _check_values(grid.scheme, tree, params, storage_dtype)
  return aligned


def _check_values(scheme, aligned, params, storage_dtype):
  """Raises ValueError unless the scales of the grid are those of the params."""
  others = leaves.flatten(params)
  grids = leaves.flatten(aligned, grids_lib.is_leaf_grid)
  for name, grid in grids.items():
    if grid is None:
      continue
    leaf = others[name]
    leaves.check_floating(leaf, name, 'The magnitude floor')
    if not leaves.is_concrete((leaf, grid)):
      continue
    outside = leaves.count_now(_count_misfits, leaf, grid, storage_dtype)
    if outside:
      raise ValueError(
          f'The {scheme.name} code grid does not fit {outside} of {leaf.size}'
          f' weights of {name!r}: their blocks have other scales, so the grid'
          ' was made from other weights. Call quant.code_grid with the full'
          f' theta_0 and storage_dtype={storage_dtype.name}, and start from'
          ' theta_0.')


@functools.partial(jax.jit, static_argnums=2)
def _count_misfits(leaf, grid, storage_dtype):
  """Counts weights out of their block's range or in a block without extreme."""
  def misfits(values, grid):
    lo, hi = grid.extent()
    sets_scale = grid.sets_scale(values)
    outside = ((values < lo) | (values > hi)) & ~sets_scale
    return outside | _lacks_extreme(sets_scale, grid)

  values = landing.stored(leaf.astype(jnp.float32), leaf.dtype, storage_dtype)
  return jnp.sum(devices.elementwise(misfits, values, values, grid))


def _lacks_extreme(
    sets_scale: jax.Array, grid: grids_lib.LeafGrid) -> jax.Array:
  """Whether no weight of a block sets its scale, for each weight; bool.

  False unless the runs of the grid are known to be whole blocks: the scheme has
  a fixed block length, and a run is as long.
  """
  entries = grid.shared.scale.shape
  runs = [n // m if m else 1 for n, m in zip(grid.shape, entries)]
  run = max(runs, default=1)
  if run == 1 or not _is_block_length(grid.scheme, run):
    return jnp.zeros((), bool)
  axis = runs.index(run)
  split = (*grid.shape[:axis], entries[axis], run, *grid.shape[axis + 1:])
  has_extreme = jnp.any(sets_scale.reshape(split), axis=axis + 1)
  return ~blockwise.spread(has_extreme, grid.shape)


def _is_block_length(scheme: scheme_lib.Scheme, run: int) -> bool:
  """Whether blocks have this length in rows of any length."""
  return scheme.block_length(run + 1) == run
