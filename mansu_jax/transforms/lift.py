"""Enlarges small moves at the last update, so that quantized values change."""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import leaves
from mansu_jax.transforms import landing_rules
from mansu_jax.transforms import latent as latent_lib


class Lift(landing_rules.LandingRule):
  """Follows targets; at the lift step, enlarges moves to cross the boundary."""

  def land(self, leaf, latent, margin, lifting):
    reach = margin * leaf.distance(latent)
    lifted = jnp.sign(latent) * jnp.maximum(jnp.abs(latent), reach)
    lifted = jnp.where(latent == 0, 0, lifted)
    value, moves = self.land_near(leaf, leaf.clip(leaf.start + lifted))
    target = leaf.clip(leaf.start + latent)
    return jnp.where(lifting, value, target), moves | ~jnp.asarray(lifting)


def lift_to_floor(
    grids: grids_lib.CodeGrid | Sequence[grids_lib.CodeGrid],
    *,
    lift_step: int,
    landing: str = 'centre',
    storage_dtype: jax.typing.DTypeLike = jnp.float32,
    boundary_margin: float = 1.02,
    keep_origin: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Follows the updates; at `lift_step`, enlarges moves past their boundary.

  This is the magnitude floor of the paper: weights follow the sum of their
  updates within the range of their block, and the last update of the run
  enlarges each move that does not yet change the quantized value. A weight
  whose value cannot change in the direction of its move returns to theta_0. The
  largest weight of each block is frozen.

  `hold_at_origin` describes exact application, non-finite updates and memory.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.array([[7.0, 2.25]])}
    >>> grid = quant.code_grid(params, 'int4_g128', {'w': quant.TORCH})
    >>> tx = transforms.lift_to_floor(grid, lift_step=2)
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...   params, state = transforms.step(
    ...       tx, {'w': jnp.array([[0.0, 0.125]])}, state, params)
    ...   print(params['w'])
    [[7.    2.375]]
    [[7. 3.]]

  Args:
    grids: see `hold_at_origin`.
    lift_step: number of the update that lifts, at least 1: the last one of the
      run. Counts only updates that reach the floor: not the steps that
      `optax.apply_if_finite` skips or `optax.MultiSteps` accumulates.
    landing: destination of a moved weight from the lift step on. 'centre': the
      first scheme's new value. 'boundary': the lifted target itself.
    storage_dtype: see `hold_at_origin`.
    boundary_margin: least length of a lifted move, in distances to the
      boundary; at least 1.
    keep_origin: see `hold_at_origin`.

  Returns:
    The transformation, with `MagnitudeFloorState`.

  Raises:
    ValueError: a lift step under 1, or as `hold_at_origin`.

  References:
    "Forgetting That Sticks", arXiv 2605.15138 (May 2026).
  """
  landing_rules.check_margin(boundary_margin)
  if leaves.is_concrete(lift_step) and lift_step < 1:
    raise ValueError(f'lift_step counts updates from 1, got {lift_step}.')
  return latent_lib.follow_rule(
      grids, functools.partial(Lift, landing=landing),
      storage_dtype=storage_dtype, boundary_margin=boundary_margin,
      lift_step=lift_step, keep_origin=keep_origin)
