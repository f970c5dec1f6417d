"""AWQ: 4-bit weights with smaller errors for large inputs.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression
and Acceleration" (arXiv 2306.00978). The weights of each input are multiplied
by s = mean|x|^alpha before rounding and divided by s afterwards. A checkpoint
folds 1 / s into the operation that produces the input (a norm, `up` or `v`),
where it changes no codes. Then the weights of each group are clipped to the
range of least error.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import affine
from mansu_jax.quant import blockwise

_LEAST_SCALE = 1e-4  # Share of the largest scale, as in AutoAWQ.
# Clipping ranges as shares of the largest weight, 1 to 0.55, as in AutoAWQ.
_SHRINKS = 1 - np.arange(10, dtype=np.float32) / 20


def awq(
    rows: jax.Array,
    second_moment: jax.Array,
    mean_abs: jax.Array,
    *,
    group: int = 128,
    grid: int = 20,
    clipped: jax.Array | None = None,
) -> affine.AffineCodes:
  """Quantizes a matrix with the alpha of least output error on the inputs.

  All rows share the input scales, so pass matrices with the same input
  together, such as q, k and v: one norm can absorb only one set of scales.
  Differences from AutoAWQ: its search measures the error of the attention or
  MLP output, this one the error of the matrix's own output; and it requires
  groups that divide the inputs. Both clip each group by the error of its own
  outputs; AutoAWQ does not clip q and k.

  Args:
    rows: weights [out, in] in torch order, float32.
    second_moment: mean of x x^T over calibration inputs x, [in, in] float32.
    mean_abs: mean of |x|, [in] float32.
    group: number of inputs that share a scale; the last group may be partial.
    grid: number of alphas 0, 1 / grid, 2 / grid, ... to try; 1 rounds to
      nearest.
    clipped: bool [out], rows whose weights may be clipped; None for none.

  Returns:
    Codes with divisor s. Scales are NaN if no error is finite, for example
    because the second moment is not.

  Raises:
    ValueError: inconsistent shapes, or a group or grid below 1.
  """
  affine.check_calibration(rows, second_moment, group)
  if mean_abs.shape != rows.shape[1:]:
    raise ValueError(
        f'The mean magnitudes have shape {mean_abs.shape}; wanted'
        f' {rows.shape[1:]}, one for each input of the weights {rows.shape}.')
  if grid < 1:
    raise ValueError(f'The grid has {grid} alphas; wanted at least 1.')

  def try_alpha(best, alpha):
    scales = _input_scales(mean_abs, alpha)
    values = affine.fake_quantize(rows * scales, group=group) / scales
    error = affine.output_error(values - rows, second_moment)
    is_better = error < best[0]
    return jax.tree.map(
        lambda new, old: jnp.where(is_better, new, old), (error, alpha),
        best), None

  alphas = np.arange(grid, dtype=np.float32) / np.float32(grid)
  best, _ = lax.scan(
      try_alpha, (jnp.float32(np.inf), jnp.float32(0)), alphas)
  scales = _input_scales(mean_abs, best[1])
  scaled = rows * scales
  if clipped is not None:
    limit = _limits(scaled, second_moment / jnp.outer(scales, scales), group)
    limit = jnp.where(clipped[:, None], limit, jnp.inf)
    scaled = jnp.clip(scaled, -limit, limit)
  codes = affine.round_to_nearest(scaled, group=group)
  return codes._replace(divisor=scales[0], scale=jnp.where(
      jnp.isfinite(best[0]), codes.scale, jnp.nan))


def _limits(
    rows: jax.Array,  # [out, in]
    second_moment: jax.Array,  # [in, in]
    group: int,
) -> jax.Array:
  """Clipping limit [out, in] of each group with the least output error."""
  blocks = blockwise.split(rows, group)[..., 0]  # [out, G, Q]
  count, size = blocks.shape[1:]
  pad = count * size - rows.shape[1]
  moments = jnp.pad(second_moment, ((0, pad), (0, pad)))
  moments = moments.reshape(count, size, count, size)
  each = np.arange(count)
  moments = moments[each, :, each, :]  # [G, Q, Q]
  largest = jnp.max(jnp.abs(blocks), -1, keepdims=True)  # [out, G, 1]

  def try_shrink(best, shrink):
    clipped = jnp.clip(blocks, -largest * shrink, largest * shrink)
    difference = affine.fake_quantize(clipped, group=size) - blocks
    outputs = jnp.einsum('ogi,gij->ogj', difference, moments,
                         precision=lax.Precision.HIGHEST)
    error = jnp.sum(outputs * difference, -1, keepdims=True)  # [out, G, 1]
    is_better = error < best[0]
    return (jnp.where(is_better, error, best[0]),
            jnp.where(is_better, shrink, best[1])), None

  start = jnp.full_like(largest, np.inf), jnp.ones_like(largest)
  (_, shrink), _ = lax.scan(try_shrink, start, _SHRINKS)
  limit = jnp.broadcast_to(largest * shrink, blocks.shape)
  return limit.reshape(len(rows), -1)[:, :rows.shape[1]]


def _input_scales(mean_abs: jax.Array, alpha: jax.Array) -> jax.Array:
  """mean|x|^alpha [1, in], normalized so that largest times smallest is 1."""
  largest = jnp.max(mean_abs, initial=0)
  share = mean_abs / jnp.where(largest > 0, largest, 1)
  scales = jnp.maximum(share**alpha, _LEAST_SCALE)
  return (scales * lax.rsqrt(jnp.max(scales) * jnp.min(scales)))[None]
