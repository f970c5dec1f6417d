"""Holds each weight at its origin until its quantized value changes."""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import grids as grids_lib
from mansu_jax.transforms import landing_rules
from mansu_jax.transforms import latent as latent_lib


class Hold(landing_rules.LandingRule):
  """Moves a weight once its target changes the decoded value."""

  def land(self, leaf, latent, margin, lifting):
    del lifting
    value, moves = self.land_near(leaf, leaf.clip(leaf.start + latent))
    if self.landing == 'boundary':
      moves &= jnp.abs(latent) >= margin * leaf.distance(latent)
    return value, moves


def hold_at_origin(
    grids: grids_lib.CodeGrid | Sequence[grids_lib.CodeGrid],
    *,
    landing: str = 'centre',
    storage_dtype: jax.typing.DTypeLike = jnp.float32,
    boundary_margin: float = 1.02,
    keep_origin: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Holds each weight at theta_0 until its quantized value changes.

  This is a dead zone with error feedback: a float32 latent sums the updates,
  and a weight leaves theta_0 only if theta_0 plus the latent, its target, has
  another quantized value. At every step, a weight is bit-equal to theta_0 or
  its decoded value differs from that of theta_0. The largest weight of each
  block is frozen, and targets are clipped to the range of their block, so the
  scales and the grid do not change.

  Put it last in a chain; it reads `params`. `optax.apply_updates` adds, and
  `p + (e - p)` may differ from `e` by a rounding: `transforms.step` applies
  updates exactly, and `floor_params` returns the exact weights. Updates of
  floored leaves are float32 for every dtype of the leaf, to keep this rounding
  small.

  A non-finite update makes the weight NaN in this step and all later ones.
  `optax.apply_if_finite` around the chain skips steps with non-finite
  gradients; around the floor alone, it also skips non-finite updates that the
  optimizer makes of finite gradients (an overflow, 0 / 0).

  The state takes 8 bytes a weight, or 4 without theta_0, and the parameters of
  each block: one float32 under nf4, two under nf4_dq and q4_0. Slices that cut
  blocks apart store these parameters for each weight.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.array([[1.0], [0.25]])}
    >>> layout = {'w': quant.BlockLayout(memory='DF', out='F', inp='D')}
    >>> grid = quant.code_grid(params, 'int4_g128', layout)
    >>> tx = transforms.hold_at_origin(grid)
    >>> state = tx.init(params)
    >>> update = {'w': jnp.full((2, 1), 0.05)}
    >>> for _ in range(3):
    ...   params, state = transforms.step(tx, update, state, params)
    ...   print(params['w'].ravel())
    [1.   0.25]
    [1.   0.25]
    [1.         0.42857146]

  Args:
    grids: the `quant.code_grid` of theta_0 for each scheme that the edit must
      survive, in the structure and shapes of the params (both may be slices).
      A leaf that is None in all grids passes through unchanged. A weight moves
      only if its value changes under every scheme that quantizes its leaf.
    landing: destination of a moved weight. 'centre': the first scheme's new
      value, which this quantizer does not change. 'boundary': the target, once
      it is at least `boundary_margin` times the distance to the boundary away.
    storage_dtype: dtype in which the weights will be exported. Codes are those
      of values after this cast, so make the grids with the same dtype.
    boundary_margin: at least 1; see `landing`.
    keep_origin: whether the state holds theta_0. If not, pass it to each
      `update` and `floor_params` as `origin`.

  Returns:
    The transformation, with `MagnitudeFloorState`.

  Raises:
    ValueError: an unknown landing, a margin under 1, or no grids; at init,
      grids that do not fit the params or were not made from them; at update,
      no `params`, or no `origin` although the state does not hold it.

  References:
    "Forgetting That Sticks", arXiv 2605.15138 (May 2026), for the floor; the
    dead zone with centre landing is our own definition. Karimireddy et al.
    2019, "Error Feedback Fixes SignSGD", for the latent.
  """
  landing_rules.check_margin(boundary_margin)
  return latent_lib.follow_rule(
      grids, functools.partial(Hold, landing=landing),
      storage_dtype=storage_dtype, boundary_margin=boundary_margin,
      keep_origin=keep_origin)
