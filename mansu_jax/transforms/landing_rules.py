"""Rules that set the weights from theta_0 and the sum of the updates.

A rule is hashable and static under jit, and the state of the transformation
holds it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import devices
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.transforms import landing as landing_lib

LANDINGS = ('centre', 'boundary')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
  """Computes theta_t of one leaf.

  Attributes:
    schemes: schemes of the grids, in their order.
    storage_dtype: dtype of the export; codes are those of values cast to it.
    covers_all: whether the rule also applies to leaves without a grid.
  """

  covers_all: ClassVar[bool] = False

  schemes: tuple[scheme_lib.Scheme, ...]
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandingRule(Rule):
  """Moves weights to landing places; those that set a scale never move.

  Attributes:
    landing: 'centre' or 'boundary'; see `hold_at_origin`.
  """

  landing: str

  def __post_init__(self):
    check_landing(self.landing)
    if not self.schemes:
      raise ValueError(
          'The magnitude floor got no grids: call quant.code_grid for each'
          ' scheme that the edit must survive.')

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

  def land_near(
      self, leaf: landing_lib.FlooredLeaf, target: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Landing of float32 targets from `leaf.clip`; returns as `land`."""
    if self.landing == 'centre':
      return leaf.land_on_centre(target)
    return leaf.land_on_target(target)


def check_landing(landing: str) -> None:
  """Raises ValueError if the landing is unknown."""
  if landing not in LANDINGS:
    raise ValueError(f'Unknown landing {landing!r}; wanted one of {LANDINGS}.')


def check_margin(margin: jax.typing.ArrayLike) -> None:
  """Raises ValueError if a concrete margin is under 1."""
  if leaves.is_concrete(margin) and not margin >= 1:
    raise ValueError(
        f'boundary_margin is {margin}; wanted at least 1, since a smaller move'
        ' does not reach the boundary.')


@functools.partial(jax.jit, static_argnums=0)
def _apply(rule, origin, latent, shared, margin, lifting):
  return rule.weights(origin, latent, shared, margin, lifting)
