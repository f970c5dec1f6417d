"""Exact weights after a magnitude floor.

`optax.apply_updates` adds, and a float sum may differ by a rounding from the
value that the floor chose. This may change the quantized value.
"""

from __future__ import annotations

import collections
import inspect
from typing import Any

import jax
import optax

from mansu_jax.quant import leaves
from mansu_jax.transforms import latent


def step(
    tx: optax.GradientTransformation, grads: optax.Updates,
    state: optax.OptState, params: optax.Params, **extra_args: Any
) -> tuple[optax.Params, optax.OptState]:
  """One update, applied so that floored weights are exact.

  Use it in place of `tx.update` and `optax.apply_updates`, inside `jax.jit`.

  Example:
    >>> import jax, optax
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.linspace(-1.0, 1.0, 64)[None]}
    >>> layout = {'w': quant.BlockLayout(memory='OI', out='O', inp='I')}
    >>> grid = quant.code_grid(params, 'nf4', layout)
    >>> tx = optax.chain(optax.sgd(0.1), transforms.hold_at_origin(grid))
    >>> theta, state = params, tx.init(params)
    >>> theta, state = transforms.step(tx, params, state, theta)
    >>> quant.check_edit(params, theta, 'nf4', layout).survives
    True

  Args:
    tx: any optax transformation. Without a floor, this is an ordinary step.
    grads: gradients of the loss at `params`.
    state: state of `tx`.
    params: current weights.
    **extra_args: arguments of `tx.update`; the floor also reads `origin`.

  Returns:
    The new weights and state.

  Raises:
    ValueError: see `floor_params`, if `tx` has a floor.
  """
  if not _takes_extra_args(tx):
    tx = optax.with_extra_args_support(tx)
  updates, state = tx.update(grads, state, params, **extra_args)
  params = optax.apply_updates(params, updates)
  if _floors(state):
    params = floor_params(state, params, origin=extra_args.get('origin'))
  return params, state


def floor_params(
    opt_state: optax.OptState, params: optax.Params | None = None, *,
    origin: optax.Params | None = None) -> optax.Params:
  """Returns the exact weights of all magnitude floors in a state.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.array([[7.0, 2.2]])}
    >>> grid = quant.code_grid(params, 'int4_g128', {'w': quant.TORCH})
    >>> tx = transforms.hold_at_origin(grid)
    >>> updates = {'w': jnp.array([[0.5, 0.5]])}
    >>> _, state = tx.update(updates, tx.init(params), params)
    >>> print(transforms.floor_params(state)['w'])
    [[7. 3.]]

  Args:
    opt_state: state of a floor (`hold_at_origin`, `lift_to_floor`,
      `accumulate_exactly`), or of a wrapper around one or several floors with
      disjoint leaves, such as a chain, `optax.partition`, `optax.MultiSteps` or
      `optax.inject_hyperparams`.
    params: weights after `optax.apply_updates`, for the leaves without a floor.
      If None, these leaves are None in the result.
    origin: theta_0, if the state does not hold it.

  Returns:
    theta_t, with the structure and dtypes of the params.

  Raises:
    ValueError: the state holds no magnitude floor, two floors with the same
      leaf, or a floor with other transformations after it in its chain; or
      `origin` does not fit the params.
  """
  floors = _floors(opt_state)
  if not floors:
    raise ValueError(
        'The optimizer state holds no magnitude floor: put hold_at_origin last'
        ' in the chain, and pass the state that this chain returned.')
  _check_last(opt_state)
  if params is not None and origin is not None:
    latent.check_origin(origin, params)
  exact = {}
  for floor in floors:
    weights = latent.current_weights(floor, origin)
    for name, leaf in leaves.flatten(weights).items():
      if leaf is not None and name in exact:
        raise ValueError(
            f'Two magnitude floors cover {name!r}: give each leaf to one floor,'
            ' for example by optax.partition.')
      if leaf is not None:
        exact[name] = leaf
  if params is None:
    return leaves.map_named(lambda name, _: exact.get(name), floors[0].latent)
  return leaves.map_named(lambda name, leaf: exact.get(name, leaf), params)


def _takes_extra_args(tx: Any) -> bool:
  """Whether `update` takes arbitrary keywords."""
  return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(
      tx.update).parameters.values())


def _is_floor(node: Any) -> bool:
  return isinstance(node, latent.MagnitudeFloorState)


def _floors(opt_state: optax.OptState) -> list[latent.MagnitudeFloorState]:
  return [node for node in jax.tree.leaves(opt_state, is_leaf=_is_floor)
          if _is_floor(node)]


def _check_last(node: Any) -> None:
  """Raises ValueError if a floor is not the last transformation of its chain.

  The state of a chain is a plain tuple, of a named chain an `OrderedDict`; no
  other state of optax has these types.
  """
  if _is_floor(node) or leaves.is_absent(node):
    return
  parts = jax.tree.leaves(
      node, is_leaf=lambda other: other is not node)
  holds = [bool(_floors(part)) for part in parts]
  if type(node) in (tuple, collections.OrderedDict) and any(holds):
    later = holds[holds.index(True):].count(False)
    if later:
      raise ValueError(
          f'The optimizer state has {later} transformation(s) after a magnitude'
          ' floor in its chain, which may move weights off their codes: put'
          ' the floor last. To transform the leaves without a floor, use'
          ' optax.partition.')
  for part, has_floor in zip(parts, holds):
    if has_floor:
      _check_last(part)
