"""The chain of MANSU's transformations, in the order of the method."""

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
  """Circuit mask, null-space projection and magnitude floor after an optimizer.

  The order is part of the method. The masks follow `inner`, because adaptive
  optimizers do not preserve a projection (Adam rescales each coordinate) and
  weight decay moves weights whose gradient is zero. The floor comes last: any
  later transformation would move weights off the grid.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.array([[1.0, 0.0], [0.3, 0.2]])}
    >>> grid = quant.code_grid(params, 'int4_g128', {'w': quant.TORCH})
    >>> tx = transforms.mansu(
    ...     optax.sgd(1.0), fisher={'w': jnp.array([[0.0, 0.0], [0.0, 9.0]])},
    ...     circuit_mask={'w': True}, grids=grid)
    >>> grads = {'w': jnp.full((2, 2), 0.2)}
    >>> theta, _ = transforms.step(tx, grads, tx.init(params), params)
    >>> print(theta['w'])
    [[ 1.         -0.14285715]
     [ 0.3         0.2       ]]

  The largest weight of each row sets the scale of its block and does not move;
  neither does the weight with the large Fisher.

  Args:
    inner: optimizer with its learning rate, e.g. `optax.adam(2e-3)`.
    fisher: diagonal Fisher of the retain set; see `project_to_null_space`. None
      omits the projection.
    circuit_mask: see `mask_to_circuit`. None omits the mask, for params that
      are circuit slices already.
    grids: see `hold_at_origin`.
    quantile: see `project_to_null_space`.
    valid: mask of the entries that are not padding; see
      `project_to_null_space`.
    mode: see `magnitude_floor`.
    landing: see `magnitude_floor`.
    lift_step: see `lift_to_floor`; only mode 'lift' uses it.
    storage_dtype: see `hold_at_origin`.
    keep_origin: see `hold_at_origin`.

  Returns:
    The chain. Apply it by `step`, which keeps floored weights exact.

  Raises:
    ValueError: see the transformations.
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
