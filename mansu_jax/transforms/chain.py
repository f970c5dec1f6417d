"""The order of MANSU's transformations, once."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import grids as grids_lib
from mansu_jax.transforms import circuit_mask as circuit_mask_lib
from mansu_jax.transforms import magnitude_floor as magnitude_floor_lib
from mansu_jax.transforms import null_space


def mansu(
    inner: optax.GradientTransformation,
    *,
    fisher: optax.Updates | None,
    circuit_mask: optax.Updates | None,
    grids: grids_lib.CodeGrid | Sequence[grids_lib.CodeGrid],
    quantile: float = 0.5,
    valid: optax.Updates | None = None,
    mode: str = 'hold',
    landing: str = 'centre',
    lift_step: int | None = None,
    storage_dtype: jax.typing.DTypeLike = jnp.float32,
    keep_origin: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Circuit mask, null-space projection and magnitude floor over an optimizer.

  The order is part of the method. Masks come after `inner`, since an adaptive
  step does not keep a projection (Adam rescales each coordinate) and weight
  decay moves weights whose gradient is zero. The floor comes last, since any
  change behind it would leave the grid, and nothing may follow it in a chain.

  Args:
    inner: the optimizer with its learning rate, e.g. `optax.adam(2e-3)`.
    fisher: diagonal Fisher of the retain set; see `project_to_null_space`.
      None leaves the projection out.
    circuit_mask: see `mask_to_circuit`. None leaves it out, for params that
      are circuit slices already.
    grids: see `magnitude_floor`.
    quantile: see `project_to_null_space`.
    valid: where slices are not padding; see `project_to_null_space`.
    mode: see `magnitude_floor`.
    landing: see `magnitude_floor`.
    lift_step: see `magnitude_floor`.
    storage_dtype: see `magnitude_floor`.
    keep_origin: see `magnitude_floor`.

  Returns:
    The chain. Take its steps by `step`, which keeps floored weights exact.

  Raises:
    ValueError: as its parts.
  """
  steps = [inner]
  if circuit_mask is not None:
    steps.append(circuit_mask_lib.mask_to_circuit(circuit_mask))
  if fisher is not None:
    steps.append(null_space.project_to_null_space(
        fisher, quantile=quantile, valid=valid))
  steps.append(magnitude_floor_lib.magnitude_floor(
      grids, mode=mode, landing=landing, lift_step=lift_step,
      storage_dtype=storage_dtype, keep_origin=keep_origin))
  return optax.chain(*steps)
