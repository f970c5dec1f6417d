"""The rules of the magnitude floor: hold, lift, and the exact sum.

A rule is a function of theta_0 and the sum of the updates to it. It is hashable
and static under jit, and the state of the floor holds it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import devices
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.transforms import landing as landing_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
  """Computes theta_t of one leaf.

  Attributes:
    schemes: schemes of the grids, in their order.
    landing: 'centre' or 'boundary'; see `magnitude_floor`.
    storage_dtype: dtype of the export; codes are those of values cast to it.
  """

  schemes: tuple[scheme_lib.Scheme, ...]
  landing: str
  storage_dtype: np.dtype

  def __call__(
      self, margin: jax.typing.ArrayLike, origin: jax.Array, latent: jax.Array,
      shared: Sequence[scheme_lib.Shared | None], *,
      lifting: jax.typing.ArrayLike) -> jax.Array:
    """Computes theta_t of one leaf.

    Args:
      margin: share of the distance that a move must cover, where boundaries
        decide.
      origin: theta_0, any shape and floating dtype.
      latent: float32 sum of the updates, same shape.
      shared: parameters of the leaf's grid under each scheme; None if the
        scheme does not quantize the leaf.
      lifting: bool [], whether the lift step is reached.

    Returns:
      theta_t, shape and dtype of `origin`; NaN where the latent is not finite.
    """
    return devices.elementwise(
        functools.partial(_apply, self), origin, origin, latent, tuple(shared),
        margin, lifting)

  @abc.abstractmethod
  def weights(
      self, origin: jax.Array, latent: jax.Array,
      shared: Sequence[scheme_lib.Shared | None], margin: jax.Array,
      lifting: jax.Array) -> jax.Array:
    """theta_t of one leaf; arguments as for a call."""


class ExactSum(Rule):
  """Adds the sum of the updates to theta_0, with one rounding and no floor."""

  def weights(self, origin, latent, shared, margin, lifting):
    del shared, margin, lifting
    total = origin.astype(jnp.float32) + latent
    return landing_lib.stored(
        total, origin.dtype, self.storage_dtype).astype(origin.dtype)


class _Floor(Rule):
  """Moves weights to landing places; those that set a scale never move."""

  @abc.abstractmethod
  def land(
      self, leaf: landing_lib.FlooredLeaf, latent: jax.Array, margin: jax.Array,
      lifting: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The new values, float32, and whether each weight takes its value."""

  def weights(self, origin, latent, shared, margin, lifting):
    leaf = landing_lib.FlooredLeaf(
        origin, self.schemes, shared, self.storage_dtype)
    value, moves = self.land(leaf, latent, margin, lifting)
    moves &= ~leaf.sets_scale()
    weights = jnp.where(moves, value.astype(origin.dtype), origin)
    # Clipping would give infinity a code, and comparisons would give NaN one.
    return jnp.where(jnp.isfinite(latent), weights, jnp.nan)

  def _land_near(self, leaf, target):
    if self.landing == 'centre':
      return leaf.land_on_centre(target)
    return leaf.land_on_target(target)


class Hold(_Floor):
  """Moves a weight once its target changes the decoded value."""

  def land(self, leaf, latent, margin, lifting):
    del lifting
    value, moves = self._land_near(leaf, leaf.clip(leaf.start + latent))
    if self.landing == 'boundary':
      moves &= jnp.abs(latent) >= margin * leaf.distance(latent)
    return value, moves


class Lift(_Floor):
  """Follows targets; at the lift step, enlarges moves to cross the boundary."""

  def land(self, leaf, latent, margin, lifting):
    reach = margin * leaf.distance(latent)
    lifted = jnp.sign(latent) * jnp.maximum(jnp.abs(latent), reach)
    lifted = jnp.where(latent == 0, 0, lifted)
    value, moves = self._land_near(leaf, leaf.clip(leaf.start + lifted))
    target = leaf.clip(leaf.start + latent)
    return jnp.where(lifting, value, target), moves | ~jnp.asarray(lifting)


@functools.partial(jax.jit, static_argnums=0)
def _apply(rule, origin, latent, shared, margin, lifting):
  return rule.weights(origin, latent, shared, margin, lifting)
