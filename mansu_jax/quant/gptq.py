"""GPTQ: 4-bit weights that compensate one another's rounding errors.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (arXiv 2210.17323). As in AutoGPTQ, the scale of a
group is fitted just before the group is rounded.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import affine
from mansu_jax.quant import cholesky

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def gptq(
    rows: jax.Array,
    second_moment: jax.Array,
    *,
    group: int = 128,
    damping: float = 0.01,
    act_order: bool = False,
) -> affine.AffineCodes:
  """Quantizes a matrix so that its outputs on the given inputs change little.

  Columns are rounded in order, and the columns that follow compensate the error
  of each. Within a group, errors propagate column by column; to later groups,
  by one matrix product a group (the paper's lazy batches).

  Args:
    rows: weights [out, in] in torch order, float32.
    second_moment: mean of x x^T over calibration inputs x, [in, in] float32, up
      to a constant factor. Weights of inputs that are always zero (zero
      diagonal) become zero.
    group: number of inputs that share a scale; the last group may be partial.
    damping: share of the mean diagonal to add to the diagonal.
    act_order: whether to round inputs in descending order of their mean square,
      so that the most important ones have the most columns left to compensate
      them. Groups then hold neighbours in this order: AutoGPTQ's `desc_act`.

  Returns:
    Codes. Scales are NaN if the damped second moment is not positive definite
    in float32: raise `damping` or use more inputs.

  Raises:
    ValueError: inconsistent shapes, or a group below 1.
  """
  affine.check_calibration(rows, second_moment, group)
  group = min(group, rows.shape[1])
  if not act_order:
    return _gptq_in_order(rows, second_moment, group, damping)
  order = jnp.argsort(jnp.diagonal(second_moment), descending=True)
  codes = _gptq_in_order(
      rows[:, order], second_moment[order][:, order], group, damping)
  back = jnp.argsort(order)
  return codes._replace(code=codes.code[:, back], group=codes.group[back])


def _gptq_in_order(rows, second_moment, group, damping):
  """`gptq` from the first column to the last; `group` is at most all."""
  inputs = rows.shape[1]
  padding = (0, -inputs % group)
  factor = _inverse_factor(second_moment, damping)
  factor = jnp.pad(factor, (padding, padding))
  # In padding, weights are zero and any positive diagonal is valid.
  factor += jnp.diag((np.arange(inputs + padding[1]) >= inputs) * 1.0)
  is_alive = jnp.diagonal(second_moment) > 0
  columns = jnp.pad(jnp.where(is_alive, rows, 0).T, (padding, (0, 0)))

  def quantize_group(columns, at):
    start, factor_rows = at  # [], [Q, in]
    take = functools.partial(
        lax.dynamic_slice_in_dim, start_index=start, slice_size=group)
    result, errors = _quantize_group(take(columns), take(factor_rows, axis=1))
    return columns - _matmul(factor_rows.T, errors), result

  starts = jnp.arange(0, len(columns), group)
  _, (code, scale, zero) = lax.scan(
      quantize_group, columns, (starts, factor.reshape(-1, group, len(factor))))
  scale = jnp.where(jnp.all(jnp.isfinite(factor)), scale, jnp.nan)
  code = code.reshape(-1, code.shape[-1])[:inputs].T  # From [G, Q, out].
  return affine.AffineCodes(
      code, scale.T, zero.T.astype(jnp.uint8), jnp.arange(inputs) // group)


def _inverse_factor(second_moment: jax.Array, damping: float) -> jax.Array:
  """Upper triangular U [in, in]; U^T U inverts the damped second moment."""
  diagonal = jnp.diagonal(second_moment)
  added = jnp.where(diagonal > 0, damping * jnp.mean(diagonal), 1.0)
  return cholesky.inverse_cholesky(second_moment + jnp.diag(added))


def _quantize_group(
    columns: jax.Array,  # [Q, out]
    factor: jax.Array,  # [Q, Q]
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Quantizes one group.

  Returns:
    Code [Q, out], scale and zero [out]; and errors [Q, out], divided by the
    diagonal of U.
  """
  scale, zero = (x[0] for x in affine.fit(columns, axis=0))

  def quantize_column(errors, i):
    column = columns[i] - _matmul(factor[:, i], errors)  # errors[i:] is 0.
    code = affine.encode(column, scale, zero)
    error = (column - affine.value(code, scale, zero)) / factor[i, i]
    return errors.at[i].set(error), code

  errors, code = lax.scan(
      quantize_column, jnp.zeros_like(columns), jnp.arange(len(columns)))
  return (code, scale, zero), errors
