"""Lets a weight move only if the move changes its quantized value."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import grids as grids_lib
from mansu_jax.transforms import accumulate
from mansu_jax.transforms import hold
from mansu_jax.transforms import landing_rules
from mansu_jax.transforms import lift

MODES = ('hold', 'lift', 'none')


def magnitude_floor(
    grids: grids_lib.CodeGrid | Sequence[grids_lib.CodeGrid],
    *,
    mode: str = 'hold',
    landing: str = 'centre',
    lift_step: int | None = None,
    storage_dtype: jax.typing.DTypeLike = jnp.float32,
    boundary_margin: float = 1.02,
    keep_origin: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Chooses a floor by its mode, such as the value of a flag.

  `hold` is `hold_at_origin`, `lift` is `lift_to_floor`, and `none` is
  `accumulate_exactly`.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.array([[7.0, 2.25]])}
    >>> grid = quant.code_grid(params, 'int4_g128', {'w': quant.TORCH})
    >>> for mode in ('hold', 'none'):
    ...   tx = transforms.magnitude_floor(grid, mode=mode)
    ...   theta, _ = transforms.step(
    ...       tx, {'w': jnp.array([[0.0, 0.125]])}, tx.init(params), params)
    ...   print(mode, theta['w'])
    hold [[7.   2.25]]
    none [[7.    2.375]]

  Args:
    grids: see `hold_at_origin`.
    mode: 'hold', 'lift' or 'none'.
    landing: see `hold_at_origin` and `lift_to_floor`; 'none' does not use it.
    lift_step: see `lift_to_floor`; only 'lift' uses it.
    storage_dtype: see `hold_at_origin`.
    boundary_margin: see `hold_at_origin` and `lift_to_floor`; 'none' does not
      use it.
    keep_origin: see `hold_at_origin`.

  Returns:
    The transformation, with `MagnitudeFloorState`.

  Raises:
    ValueError: an unknown mode or landing, a margin under 1, 'lift' without
      `lift_step`, or as the transformation of the mode.
  """
  if mode not in MODES:
    raise ValueError(
        f'Unknown floor mode {mode!r}; wanted one of {list(MODES)}.')
  landing_rules.check_landing(landing)
  landing_rules.check_margin(boundary_margin)
  common = dict(storage_dtype=storage_dtype, keep_origin=keep_origin)
  if mode == 'none':
    return accumulate.accumulate_exactly(grids, **common)
  common |= dict(landing=landing, boundary_margin=boundary_margin)
  if mode == 'hold':
    return hold.hold_at_origin(grids, **common)
  if lift_step is None:
    raise ValueError(
        "Mode 'lift' acts at the last update of the run: give its number as"
        ' lift_step.')
  return lift.lift_to_floor(grids, lift_step=lift_step, **common)
