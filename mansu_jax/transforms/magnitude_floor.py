"""Lets a weight move only when quantization will see it move."""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import grids as grids_lib
from mansu_jax.quant import leaves
from mansu_jax.transforms import landing as landing_lib

MODES = ('hold', 'lift', 'none')
LANDINGS = ('centre', 'boundary')


class MagnitudeFloorState(NamedTuple):
  """Leaves are of the param's shape; None where no grid has the leaf."""

  count: jax.Array  # int32 [], updates so far
  grids: tuple[grids_lib.CodeGrid, ...]  # one a scheme
  origin: optax.Params  # theta_0, dtype of the params
  latent: optax.Updates  # float32, sum of all updates
  emitted: optax.Params  # theta_t exactly, dtype of the params; every leaf


def magnitude_floor(
    grids: grids_lib.CodeGrid | Sequence[grids_lib.CodeGrid],
    *,
    mode: str = 'hold',
    landing: str = 'centre',
    lift_step: int | None = None,
    storage_dtype: jax.typing.DTypeLike = jnp.float32,
    boundary_margin: float = 1.02,
) -> optax.GradientTransformation:
  """Holds each weight at theta_0 until its quantized value changes.

  An error-feedback dead zone: updates add up in a float32 latent, and a weight
  leaves theta_0 only when the accumulated target falls on another quantized
  value. So at every step a weight is bit-equal to theta_0, or its decoded value
  differs from theta_0's. The largest magnitude of each block is frozen, and no
  target leaves its block's range: the scales, and with them the grid, stay.

  Goes last in a chain, and reads `params`. `optax.apply_updates` adds, and
  `p + (e - p)` may miss `e` by a rounding: `floor_params(state)` returns the
  exact weights. Updates of floored leaves are float32 whatever the leaf is,
  since a coarser difference would miss by more.

  Call `init` outside jit: the grids move from there into the state, and inside
  they would be baked into the program as constants.

  Example:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.array([[1.0], [0.25]])}
    >>> layout = {'w': quant.BlockLayout(memory='DF', out='F', inp='D')}
    >>> grid = quant.code_grid(params, 'int4_g128', layout)
    >>> tx = transforms.magnitude_floor(grid)
    >>> state = tx.init(params)
    >>> step = {'w': jnp.full((2, 1), 0.05)}
    >>> for _ in range(3):
    ...   updates, state = tx.update(step, state, params)
    ...   params = optax.apply_updates(params, updates)
    ...   print(transforms.floor_params(state)['w'].ravel())
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
      ignore it.
    storage_dtype: what the weights are exported in. Decisions are made on
      values after this cast, so the grids must be of weights cast to it.
    boundary_margin: at least 1; see `landing`, and used by 'lift'.

  Returns:
    The transformation, with `MagnitudeFloorState`.

  Raises:
    ValueError: an unknown mode or landing, 'lift' without `lift_step`, a margin
      under 1, no grids; at init, grids that do not fit the params or
      were not made from them; at update, no `params`.

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
  place = functools.partial(
      landing_lib.place, mode=mode, landing=landing,
      storage_dtype=jnp.dtype(storage_dtype))

  def init_fn(params):
    for grid in grids:
      _check_grid(grid, params, storage_dtype)
    floored = _floored(grids, params, mode)
    copy = lambda f, p: jnp.array(p) if f else None
    zeros = lambda f, p: jnp.zeros(jnp.shape(p), jnp.float32) if f else None
    # Copies, so that the state may be donated and the arguments used again.
    return MagnitudeFloorState(
        count=jnp.zeros([], jnp.int32), grids=jax.tree.map(jnp.array, grids),
        origin=leaves.tree_map(copy, floored, params),
        latent=leaves.tree_map(zeros, floored, params),
        emitted=jax.tree.map(jnp.array, params))

  def update_fn(updates, state, params=None):
    if params is None:
      raise ValueError(
          'magnitude_floor needs the params: call update(updates, state,'
          ' params).')
    count = optax.safe_increment(state.count)
    lifting = lift_step is not None and count >= lift_step
    add = lambda u, l: l if u is None or l is None else l + u
    latent = leaves.tree_map(add, updates, state.latent)
    step = lambda u, p, o, l, *g: (
        _apply(p, u) if o is None
        else place(o, l, g, boundary_margin, lifting))
    emitted = leaves.tree_map(
        step, updates, params, state.origin, latent,
        *(grid.leaf_grids() for grid in state.grids))
    difference = lambda u, o, e, p: (
        u if u is None or o is None
        else e.astype(jnp.float32) - p.astype(jnp.float32))
    new_updates = leaves.tree_map(
        difference, updates, state.origin, emitted, params)
    return new_updates, state._replace(
        count=count, latent=latent, emitted=emitted)

  return optax.GradientTransformation(init_fn, update_fn)


def floor_params(opt_state: Any) -> optax.Params:
  """The exact weights, from a state that holds a magnitude floor's anywhere.

  Args:
    opt_state: state of `magnitude_floor`, or of a chain, `optax.MultiSteps`,
      `optax.inject_hyperparams` or the like around it.

  Returns:
    theta_t, with the structure and dtypes of the params.

  Raises:
    ValueError: the state holds no magnitude floor, or several.
  """
  is_floor = lambda node: isinstance(node, MagnitudeFloorState)
  found = [
      node for node in jax.tree.leaves(opt_state, is_leaf=is_floor)
      if is_floor(node)]
  if len(found) != 1:
    raise ValueError(
        f'The optimizer state holds {len(found)} magnitude floors, wanted 1:'
        ' put magnitude_floor last in the chain, once, and pass the state'
        ' that this chain returned.')
  return found[0].emitted


def _apply(param, update):
  """The param after `optax.apply_updates`, for a leaf without a floor."""
  if param is None or update is None:
    return param
  return jnp.asarray(param + update).astype(jnp.asarray(param).dtype)


def _floored(grids, params, mode):
  """A tree like the params: whether a leaf has a latent."""
  if mode == 'none':
    return leaves.tree_map(lambda p: p is not None, params)
  any_grid = lambda p, *scales: (
      p is not None and any(scale is not None for scale in scales))
  return leaves.tree_map(any_grid, params, *(grid.scale for grid in grids))


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
  if mode == 'lift' and isinstance(lift_step, int) and lift_step < 1:
    raise ValueError(f'lift_step counts updates from 1, got {lift_step}.')
  if isinstance(margin, (int, float)) and not margin >= 1:
    raise ValueError(
        f'boundary_margin is {margin}, wanted at least 1: a smaller move does'
        ' not reach the boundary.')
  if not grids and mode != 'none':
    raise ValueError(
        'magnitude_floor got no grids: make them by quant.code_grid, one for'
        ' each scheme that the edit must survive.')


def _check_grid(grid, params, storage_dtype):
  """Raises ValueError unless the grid is that of these params."""
  what = f'{grid.scheme.name} code grid'
  for field, tree in grid.fields().items():
    leaves.check_shapes(tree, params, f'The {field} of the {what}')
  leaf_grids = jax.tree.leaves(
      grid.leaf_grids(), is_leaf=grids_lib.is_leaf_grid)
  for (name, leaf), leaf_grid in zip(leaves.named(params).items(), leaf_grids):
    if leaf is None or leaf_grid is None:
      continue
    leaves.check_floating(leaf, name, 'The magnitude floor')
    if not leaves.is_concrete((leaf, leaf_grid)):
      continue
    others = int(_count_other_values(leaf, leaf_grid, jnp.dtype(storage_dtype)))
    if others:
      raise ValueError(
          f'The {what} gives {others} of {leaf.size} weights of {name!r}'
          ' another value than they quantize to: it was made from other'
          ' weights. Make it with quant.code_grid from the full theta_0,'
          ' storage_dtype='
          f'{jnp.dtype(storage_dtype).name}, and start from theta_0.')


@functools.partial(jax.jit, static_argnums=2)
def _count_other_values(leaf, grid, storage_dtype):
  values = landing_lib.stored(
      leaf.astype(jnp.float32), leaf.dtype, storage_dtype)
  return jnp.sum(grid.changes(values))
