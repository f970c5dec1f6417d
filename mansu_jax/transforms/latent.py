"""Error feedback: weights that follow a rule of theta_0 and summed updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import leaves
from mansu_jax.transforms import grid_fit
from mansu_jax.transforms import landing_rules


class MagnitudeFloorState(NamedTuple):
  """Trees have the structure of the params; None if no grid covers the leaf.

  The state does not hold theta_t: `floor_params` computes it.
  """

  count: jax.Array  # int32 [], number of updates
  rule: jax.tree_util.Partial  # (origin, latent, shared) -> theta_t
  shared: tuple[optax.Params, ...]  # one for each scheme; leaf quant.Shared
  origin: optax.Params | None  # theta_0, dtype of the params; None: not stored
  latent: optax.Updates  # float32, sum of all updates


def follow_rule(
    grids: grids_lib.CodeGrid | Sequence[grids_lib.CodeGrid],
    make_rule: Callable[..., landing_rules.Rule], *,
    storage_dtype: jax.typing.DTypeLike,
    boundary_margin: jax.typing.ArrayLike = 1.0,
    lift_step: jax.typing.ArrayLike | None = None,
    keep_origin: bool) -> optax.GradientTransformationExtraArgs:
  """Sums updates and sets the weights to a rule's function of the sum.

  Args:
    grids: grid of theta_0 for each scheme.
    make_rule: makes the rule from keywords `schemes` and `storage_dtype`.
    storage_dtype: see `hold_at_origin`.
    boundary_margin: see `hold_at_origin`.
    lift_step: see `lift_to_floor`; None: never lifts.
    keep_origin: see `hold_at_origin`.

  Returns:
    The transformation, with `MagnitudeFloorState`.

  Raises:
    ValueError: see `hold_at_origin`.
  """
  grids = _as_tuple(grids)
  if isinstance(storage_dtype, jax.Array):  # From inject_hyperparams.
    storage_dtype = storage_dtype.dtype
  rule = make_rule(
      schemes=tuple(grid.scheme for grid in grids),
      storage_dtype=jnp.dtype(storage_dtype))

  def rule_at(count):
    # Positional and keyword: Orbax cannot save a Partial without both.
    return jax.tree_util.Partial(
        rule, jnp.asarray(boundary_margin, jnp.float32),
        lifting=jnp.asarray(lift_step is not None and count >= lift_step))

  def init_fn(params):
    if leaves.is_placeholder(params):
      return _placeholder_state(grids, rule_at(0), params, keep_origin)
    aligned = grid_fit.align(grids, params, rule.storage_dtype)
    covered = leaves.tree_map(
        lambda p, *found: not leaves.is_absent(p) and (
            rule.covers_all or any(grid is not None for grid in found)),
        params, *aligned)
    # Copies, so that the state can be donated without its sources.
    copy = lambda c, p: jnp.array(p) if c else None
    zeros = lambda c, p: jnp.zeros_like(p, jnp.float32) if c else None
    copy_shared = lambda _, grid: grid and jax.tree.map(jnp.array, grid.shared)
    return MagnitudeFloorState(
        count=jnp.zeros([], jnp.int32), rule=rule_at(0),
        shared=tuple(
            leaves.tree_map(copy_shared, params, tree) for tree in aligned),
        origin=leaves.tree_map(copy, covered, params) if keep_origin else None,
        latent=leaves.tree_map(zeros, covered, params))

  def update_fn(updates, state, params=None, *, origin=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
          'The magnitude floor needs the params: call update(updates, state,'
          ' params).')
    if origin is not None:
      check_origin(origin, params)
    count = optax.safe_increment(state.count)
    add = lambda u, l: l if l is None or leaves.is_absent(u) else l + u
    state = state._replace(
        count=count, rule=rule_at(count),
        latent=leaves.tree_map(add, updates, state.latent))
    difference = lambda u, p, w: (
        u if w is None or leaves.is_absent(u)
        else w.astype(jnp.float32) - p.astype(jnp.float32))
    weights = current_weights(state, origin)
    return leaves.tree_map(difference, updates, params, weights), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _as_tuple(
    grids: grids_lib.CodeGrid | Sequence[grids_lib.CodeGrid]
) -> tuple[grids_lib.CodeGrid, ...]:
  """The grids; raises ValueError if one is not a grid."""
  grids = (grids,) if isinstance(grids, grids_lib.CodeGrid) else tuple(grids)
  for grid in grids:
    if not isinstance(grid, grids_lib.CodeGrid):
      raise ValueError(
          f'The magnitude floor got a {type(grid).__name__} as a grid; wanted a'
          ' result of quant.code_grid, or a sequence of results.')
  return grids


def _placeholder_state(grids, rule, params, keep_origin):
  """A state for `optax.tree_map_params`; see `leaves.is_placeholder`."""
  shared_of = lambda grid: grid and jax.tree.map(jnp.array, grid.shared)
  return MagnitudeFloorState(
      count=jnp.zeros([], jnp.int32), rule=rule,
      shared=tuple(
          jax.tree.map(shared_of, grid.leaves, is_leaf=grids_lib.is_leaf_grid)
          for grid in grids),
      origin=params if keep_origin else None, latent=params)


def current_weights(
    state: MagnitudeFloorState, origin: optax.Params | None = None
) -> optax.Params:
  """theta_t of the leaves that the floor covers, None for the others.

  Args:
    state: state of a floor.
    origin: theta_0, if the state does not hold it.

  Raises:
    ValueError: theta_0 is neither in the state nor given.
  """
  if state.origin is not None:
    origin = state.origin
  elif origin is None:
    raise ValueError(
        'The state of the magnitude floor holds no theta_0'
        ' (keep_origin=False): pass it as origin=theta_0 to update,'
        ' floor_params or step.')
  weights = lambda l, o, *shared: None if l is None else state.rule(
      o, l, shared)
  return leaves.tree_map(weights, state.latent, origin, *state.shared)


def check_origin(origin: optax.Params, params: optax.Params) -> None:
  """Raises ValueError unless theta_0 has the params' shapes and dtypes."""
  aligned = leaves.align_shapes(origin, params, 'origin')
  others = leaves.flatten(params)
  for name, leaf in leaves.flatten(aligned).items():
    if leaf is not None and leaf.dtype != others[name].dtype:
      raise ValueError(
          f'origin is {leaf.dtype.name} at {name!r}, but the params are'
          f' {others[name].dtype.name}: pass theta_0 with the dtypes of the'
          ' params.')
