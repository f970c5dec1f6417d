"""Adds the exact sum of the updates to the weights, without a floor."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import grids as grids_lib
from mansu_jax.transforms import landing as landing_lib
from mansu_jax.transforms import landing_rules
from mansu_jax.transforms import latent as latent_lib


class ExactSum(landing_rules.Rule):
  """Adds the sum of the updates to theta_0, with one rounding and no floor."""

  covers_all = True

  def weights(self, origin, latent, shared, margin, lifting):
    del shared, margin, lifting
    total = origin.astype(jnp.float32) + latent
    return landing_lib.stored(
        total, origin.dtype, self.storage_dtype).astype(origin.dtype)


def accumulate_exactly(
    grids: grids_lib.CodeGrid | Sequence[grids_lib.CodeGrid] = (),
    *,
    storage_dtype: jax.typing.DTypeLike = jnp.float32,
    keep_origin: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Sets the weights to theta_0 plus the float32 sum of all updates.

  A baseline for `hold_at_origin` and `lift_to_floor`: it has the same state and
  the same exact application, but no floor. Updates too small to change a
  bfloat16 weight one by one are not lost.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import transforms
    >>> tx = transforms.accumulate_exactly()
    >>> params = {'w': jnp.ones(1, jnp.bfloat16)}
    >>> state = tx.init(params)
    >>> for _ in range(4):
    ...   params, state = transforms.step(
    ...       tx, {'w': jnp.full(1, 0.0025)}, state, params)
    >>> params['w'].item()  # bfloat16 numbers above 1 are 2**-7 apart.
    1.0078125

  Args:
    grids: code grids, for an equal interface. `init` checks that they fit the
      params; the sum does not depend on them.
    storage_dtype: dtype in which the weights will be exported; they are rounded
      to it.
    keep_origin: see `hold_at_origin`.

  Returns:
    The transformation, with `MagnitudeFloorState`; it covers all leaves.

  Raises:
    ValueError: at init, grids that do not fit the params; at update, no
      `params`, or no `origin` although the state does not hold it.

  References:
    Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", for the latent.
  """
  return latent_lib.follow_rule(
      grids, ExactSum, storage_dtype=storage_dtype, keep_origin=keep_origin)
