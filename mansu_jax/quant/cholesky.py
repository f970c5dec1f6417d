"""The Cholesky factor of an inverse, in one loop over blocks of columns."""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def inverse_cholesky(matrix: jax.Array, *, block: int = 128) -> jax.Array:
  """Upper triangular U such that U^T U is the inverse of the matrix.

  The matrix is R R^T with R upper triangular, and U = R^-1. The loop goes from
  the last block of columns to the first: the columns of R are the remainder of
  the matrix after the later columns, and the rows of U follow by substitution.

  TPU compilers unroll all blocks of `jnp.linalg.cholesky` and
  `solve_triangular`: 4096 columns take minutes, and 14336, the hidden neurons
  of an 8B model, do not compile. This function unrolls only one block and
  performs three times their operations, all in matrix products.

  Args:
    matrix: symmetric and positive definite, [n, n] float32.
    block: number of columns to process at a time.

  Returns:
    [n, n]; NaN if the matrix is not positive definite in float32.
  """
  size = len(matrix)
  block = min(block, size)
  pad = -size % block
  matrix = jnp.pad(matrix, (0, pad))
  # Any positive diagonal is valid in padding.
  matrix += jnp.diag((np.arange(size + pad) >= size).astype(np.float32))
  at = np.arange(size + pad)

  def step(i, carry):
    # `mixed` holds columns of the matrix up to this block, and of R after it.
    mixed, inverse = carry
    start = size + pad - (i + 1) * block
    row = lax.dynamic_slice_in_dim(mixed, start, block, axis=0)
    row = jnp.where(at >= start + block, row, 0)  # Of R, right of this block.
    rest = lax.dynamic_slice_in_dim(mixed, start, block, axis=1)
    rest = rest - _matmul(mixed, row.T)
    unit = _inverse_of_block(lax.dynamic_slice_in_dim(rest, start, block))
    columns = jnp.where(at[:, None] < start + block, _matmul(rest, unit.T), 0)
    inverse_rows = lax.dynamic_update_slice_in_dim(
        -_matmul(unit, _matmul(row, inverse)), unit, start, axis=1)
    update = lax.dynamic_update_slice_in_dim
    return (update(mixed, columns, start, axis=1),
            update(inverse, inverse_rows, start, axis=0))

  _, inverse = lax.fori_loop(
      0, len(at) // block, step, (matrix, jnp.zeros_like(matrix)))
  return inverse[:size, :size]


def _inverse_of_block(matrix: jax.Array) -> jax.Array:
  """`inverse_cholesky` of a small matrix."""
  with jax.default_matmul_precision('highest'):
    lower = jnp.linalg.cholesky(matrix[::-1, ::-1])
    return jax.scipy.linalg.solve_triangular(
        lower[::-1, ::-1], jnp.eye(len(matrix)), lower=False)
