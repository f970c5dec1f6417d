"""Lets a weight move only when quantization will see it move."""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import blockwise
from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import leaves
from mansu_jax.transforms import landing as landing_lib

MODES = ('hold', 'lift', 'none')
LANDINGS = ('centre', 'boundary')


class MagnitudeFloorState(NamedTuple):
  """Trees have the structure of the params; None where no grid has the leaf.

  theta_t itself is not kept: `floor_params` makes it of these.
  """

  count: jax.Array  # int32 [], updates so far
  place: jax.tree_util.Partial  # (origin, latent, shared) -> theta_t of a leaf
  shared: tuple[optax.Params, ...]  # one a scheme; leaf quant.Shared
  origin: optax.Params | None  # theta_0, dtype of the params; None: not kept
  latent: optax.Updates  # float32, sum of all updates


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
  """Holds each weight at theta_0 until its quantized value changes.

  An error-feedback dead zone: updates add up in a float32 latent, and a weight
  leaves theta_0 only when the accumulated target falls on another quantized
  value. So at every step a weight is bit-equal to theta_0, or its decoded value
  differs from theta_0's. The largest magnitude of each block is frozen, and no
  target leaves its block's range: the scales, and with them the grid, stay.

  Goes last in a chain, and reads `params`. `optax.apply_updates` adds, and
  `p + (e - p)` may miss `e` by a rounding: `transforms.step` applies updates
  exactly, and `floor_params` gives the exact weights. Updates of floored leaves
  are float32 whatever the leaf is, since a coarser difference would miss by
  more.

  An update that is not finite makes the weight NaN, and later steps keep it so.
  `optax.apply_if_finite` around the chain skips steps whose gradients are not
  finite; around the floor alone it also skips updates that the optimizer spoils
  (an overflow, 0 / 0).

  The state has 8 bytes a weight, or 4 where theta_0 is not kept, and what a
  block shares: one float32 under nf4, two under nf4_dq and q4_0. Slices that
  cut through blocks have that for each weight.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.array([[1.0], [0.25]])}
    >>> layout = {'w': quant.BlockLayout(memory='DF', out='F', inp='D')}
    >>> grid = quant.code_grid(params, 'int4_g128', layout)
    >>> tx = transforms.magnitude_floor(grid)
    >>> state = tx.init(params)
    >>> update = {'w': jnp.full((2, 1), 0.05)}
    >>> for _ in range(3):
    ...   params, state = transforms.step(tx, update, state, params)
    ...   print(params['w'].ravel())
    [1.   0.25]
    [1.   0.25]
    [1.         0.42857146]

  Args:
    grids: the `quant.code_grid` of theta_0 for each scheme that must see the
      edit, in the structure and shapes of the params (slices of both are fine).
      A leaf that is None in all of them passes through untouched. A weight
      moves only if its value changes under every scheme that has its leaf.
    mode: 'hold', as above; 'lift' passes targets on until `lift_step` updates
      were made and from then on scales every smaller one up to just past its
      boundary, as the paper does; 'none' only keeps the exact sum, to measure
      what the floor is worth.
    landing: where a moved weight goes. 'centre': to the first scheme's new
      value, so that this quantizer leaves the edit as it is. 'boundary': to
      its target, once that is `boundary_margin` times the distance away.
    lift_step: number of the update that lifts, the run's last; other modes
      ignore it. Only updates that reach the floor count: not the steps that
      `optax.apply_if_finite` skips or `optax.MultiSteps` gathers.
    storage_dtype: what the weights are exported in. Decisions are made on
      values after this cast, so the grids must be of weights cast to it.
    boundary_margin: at least 1; see `landing`, and used by 'lift'.
    keep_origin: whether the state keeps theta_0. If not, pass it to each
      `update` and `floor_params` as `origin`.

  Returns:
    The transformation, with `MagnitudeFloorState`.

  Raises:
    ValueError: an unknown mode or landing, 'lift' without `lift_step`, a margin
      under 1, no grids; at init, grids that do not fit the params or
      were not made from them; at update, no `params`, or no `origin` where it
      is not kept.

  References:
    "Forgetting That Sticks", arXiv 2605.15138 (May 2026), for the floor; the
    dead zone with centre landing is our own definition. Karimireddy et al.
    2019, "Error Feedback Fixes SignSGD", for the latent.
  """
  if isinstance(grids, grids_lib.CodeGrid):
    grids = (grids,)
  grids = tuple(grids)
  _check_grids(grids)
  _check_options(grids, mode, landing, lift_step, boundary_margin)
  if isinstance(storage_dtype, jax.Array):  # inject_hyperparams calls types.
    storage_dtype = storage_dtype.dtype
  rule = landing_lib.Rule(
      schemes=tuple(grid.scheme for grid in grids), mode=mode, landing=landing,
      storage_dtype=jnp.dtype(storage_dtype))

  def placing(count):
    # Arrays by position and by name: Orbax cannot save a Partial without.
    return jax.tree_util.Partial(
        rule, jnp.asarray(boundary_margin, jnp.float32),
        lifting=jnp.asarray(lift_step is not None and count >= lift_step))

  def init_fn(params):
    own = lambda _, g: None if g is None else jax.tree.map(jnp.array, g.shared)
    if leaves.is_placeholder(params):
      return MagnitudeFloorState(
          count=jnp.zeros([], jnp.int32), place=placing(0),
          shared=tuple(jax.tree.map(
              lambda g: own(None, g), grid.leaves,
              is_leaf=grids_lib.is_leaf_grid) for grid in grids),
          origin=params if keep_origin else None, latent=params)
    aligned = [grids_lib.align_grid(grid, params) for grid in grids]
    for grid, tree in zip(grids, aligned):
      _check_grid(grid.scheme, tree, params, rule.storage_dtype)
    floored = _floored(aligned, params, mode)
    # Copies, so that the state may be donated and the arguments used again.
    copy = lambda f, p: jnp.array(p) if f else None
    zeros = lambda f, p: jnp.zeros_like(p, jnp.float32) if f else None
    return MagnitudeFloorState(
        count=jnp.zeros([], jnp.int32), place=placing(0),
        shared=tuple(leaves.tree_map(own, params, tree) for tree in aligned),
        origin=leaves.tree_map(copy, floored, params) if keep_origin else None,
        latent=leaves.tree_map(zeros, floored, params))

  def update_fn(updates, state, params=None, *, origin=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
          'magnitude_floor needs the params: call update(updates, state,'
          ' params).')
    if origin is not None:
      check_origin(origin, params)
    count = optax.safe_increment(state.count)
    add = lambda u, l: l if l is None or leaves.is_absent(u) else l + u
    state = state._replace(
        count=count, place=placing(count),
        latent=leaves.tree_map(add, updates, state.latent))
    difference = lambda u, p, e: (
        u if e is None or leaves.is_absent(u)
        else e.astype(jnp.float32) - p.astype(jnp.float32))
    exact = emitted(state, origin)
    return leaves.tree_map(difference, updates, params, exact), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def emitted(
    state: MagnitudeFloorState, origin: optax.Params | None = None
) -> optax.Params:
  """theta_t of the leaves of one floor, None for the others.

  Args:
    state: of `magnitude_floor`.
    origin: theta_0, where the state does not keep it.

  Raises:
    ValueError: theta_0 is neither kept nor given.
  """
  if state.origin is not None:
    origin = state.origin
  elif origin is None:
    raise ValueError(
        'The magnitude floor keeps no theta_0 (keep_origin=False) and none was'
        ' given: pass it as origin=theta_0 to update, floor_params or step.')
  place = lambda l, o, *shared: None if l is None else state.place(
      o, l, shared)
  return leaves.tree_map(place, state.latent, origin, *state.shared)


def check_origin(origin: optax.Params, params: optax.Params) -> None:
  """Raises ValueError unless theta_0 has the shapes and dtypes of the params."""
  aligned = leaves.align_shapes(origin, params, 'origin')
  others = leaves.named(params)
  for name, leaf in leaves.named(aligned).items():
    if leaf is not None and leaf.dtype != others[name].dtype:
      raise ValueError(
          f'origin is {leaf.dtype.name} at {name!r}, but the params are'
          f' {others[name].dtype.name}: pass theta_0 as it was trained from.')


def _floored(aligned, params, mode):
  """A tree like the params: whether a leaf has a latent."""
  floored = lambda p, *grids: not leaves.is_absent(p) and (
      mode == 'none' or any(grid is not None for grid in grids))
  return leaves.tree_map(floored, params, *aligned)


def _check_grids(grids):
  for grid in grids:
    if not isinstance(grid, grids_lib.CodeGrid):
      raise ValueError(
          f'magnitude_floor got a {type(grid).__name__} for a grid; wanted what'
          ' quant.code_grid makes, or a sequence of these.')


def _check_options(grids, mode, landing, lift_step, margin):
  if mode not in MODES:
    raise ValueError(f'Unknown floor mode {mode!r}: wanted one of {MODES}.')
  if landing not in LANDINGS:
    raise ValueError(f'Unknown landing {landing!r}: wanted one of {LANDINGS}.')
  if mode == 'lift' and lift_step is None:
    raise ValueError(
        "Mode 'lift' acts at the run's last update: give its number as"
        ' lift_step.')
  if mode == 'lift' and leaves.is_concrete(lift_step) and lift_step < 1:
    raise ValueError(f'lift_step counts updates from 1, got {lift_step}.')
  if leaves.is_concrete(margin) and not margin >= 1:
    raise ValueError(
        f'boundary_margin is {margin}, wanted at least 1: a smaller move does'
        ' not reach the boundary.')
  if not grids and mode != 'none':
    raise ValueError(
        'magnitude_floor got no grids: make them by quant.code_grid, one for'
        ' each scheme that the edit must survive.')


def _check_grid(scheme, aligned, params, storage_dtype):
  """Raises ValueError unless the grid is that of these params."""
  others = leaves.named(params)
  grids = leaves.named(aligned, grids_lib.is_leaf_grid)
  for name, grid in grids.items():
    if grid is None:
      continue
    leaf = others[name]
    leaves.check_floating(leaf, name, 'The magnitude floor')
    if not leaves.is_concrete((leaf, grid)):
      continue
    outside = leaves.count_now(_count_misfits, leaf, grid, storage_dtype)
    if outside:
      raise ValueError(
          f'The {scheme.name} code grid does not fit {outside} of {leaf.size}'
          f' weights of {name!r}: their blocks have other scales, so it was'
          ' made from other weights. Make it with quant.code_grid from the full'
          f' theta_0, storage_dtype={storage_dtype.name}, and start from'
          ' theta_0.')


@functools.partial(jax.jit, static_argnums=2)
def _count_misfits(leaf, grid, storage_dtype):
  """Weights beyond their block's range, or of a block without its extreme."""
  def misfits(values, grid):
    lo, hi = grid.extent()
    sets_scale = grid.sets_scale(values)
    beyond = ((values < lo) | (values > hi)) & ~sets_scale
    return beyond | _lacks_extreme(sets_scale, grid)

  values = landing_lib.stored(
      leaf.astype(jnp.float32), leaf.dtype, storage_dtype)
  return jnp.sum(leaves.elementwise(misfits, values, values, grid))


def _lacks_extreme(sets_scale, grid):
  """Whether no weight of the block sets its scale; False where runs are short.

  A run is known to be a whole block where the scheme's length is fixed.
  """
  kept = grid.shared.scale.shape
  runs = [n // m if m else 1 for n, m in zip(grid.shape, kept)]
  run = max(runs, default=1)
  if run == 1 or grid.scheme.block_length(run + 1) != run:
    return jnp.zeros((), bool)
  axis = runs.index(run)
  split = (*grid.shape[:axis], kept[axis], run, *grid.shape[axis + 1:])
  has = jnp.any(sets_scale.reshape(split), axis=axis + 1)
  return ~blockwise.spread(has, grid.shape)
