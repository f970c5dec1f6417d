"""Exact weights behind a magnitude floor.

`optax.apply_updates` adds, and a sum of floats may miss the value that the
floor chose by a rounding, which the quantizer may see.
"""

from __future__ import annotations

import collections
import inspect
from typing import Any

import jax
import optax

from mansu_jax.quant import leaves
from mansu_jax.transforms import magnitude_floor as floor_lib


def step(
    tx: optax.GradientTransformation, grads: optax.Updates,
    state: optax.OptState, params: optax.Params, **extra_args: Any
) -> tuple[optax.Params, optax.OptState]:
  """One update, applied so that floored weights are exact.

  Use it in place of `tx.update` and `optax.apply_updates`, under `jax.jit`.

  Example:
    >>> import jax, optax
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant, transforms
    >>> params = {'w': jnp.linspace(-1.0, 1.0, 64)[None]}
    >>> layout = {'w': quant.BlockLayout(memory='OI', out='O', inp='I')}
    >>> grid = quant.code_grid(params, 'nf4', layout)
    >>> tx = optax.chain(optax.sgd(0.1), transforms.magnitude_floor(grid))
    >>> theta, state = params, tx.init(params)
    >>> theta, state = transforms.step(tx, params, state, theta)
    >>> quant.check_edit(params, theta, 'nf4', layout).survives
    True

  Args:
    tx: any optax transformation; without a floor this is an ordinary step.
    grads: of the loss at `params`.
    state: of `tx`.
    params: the weights.
    **extra_args: passed on to `tx.update`; `origin` to the floor as well.

  Returns:
    The new weights and state.

  Raises:
    ValueError: as `floor_params`, where there is a floor.
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
  """The exact weights, from a state that holds magnitude floors anywhere.

  Args:
    opt_state: state of `magnitude_floor`, or of a chain, `optax.partition`,
      `optax.MultiSteps`, `optax.inject_hyperparams` or the like around one or
      several that own different leaves.
    params: the weights after `optax.apply_updates`: leaves without a floor are
      taken from there. None: they are None.
    origin: theta_0, where the floor does not keep it.

  Returns:
    theta_t, with the structure and dtypes of the params.

  Raises:
    ValueError: the state holds no magnitude floor, two that own the same leaf,
      or one that other transformations follow in its chain; or `origin` does
      not fit the params.
  """
  floors = _floors(opt_state)
  if not floors:
    raise ValueError(
        'The optimizer state holds no magnitude floor: put magnitude_floor last'
        ' in the chain, and pass the state that this chain returned.')
  _check_last(opt_state)
  if params is not None and origin is not None:
    floor_lib.check_origin(origin, params)
  exact = {}
  for floor in floors:
    for name, leaf in leaves.named(floor_lib.emitted(floor, origin)).items():
      if leaf is not None and name in exact:
        raise ValueError(
            f'Two magnitude floors own {name!r}: give each leaf to one, for'
            ' example by optax.partition.')
      if leaf is not None:
        exact[name] = leaf
  if params is None:
    whole = lambda name, _: exact.get(name)
    return leaves.map_named(whole, floors[0].latent)
  return leaves.map_named(lambda name, leaf: exact.get(name, leaf), params)


def _takes_extra_args(tx: Any) -> bool:
  """Whether `update` takes any keyword, as of `optax.MultiSteps` too."""
  return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(
      tx.update).parameters.values())


def _is_floor(node: Any) -> bool:
  return isinstance(node, floor_lib.MagnitudeFloorState)


def _floors(opt_state: optax.OptState) -> list[floor_lib.MagnitudeFloorState]:
  return [node for node in jax.tree.leaves(opt_state, is_leaf=_is_floor)
          if _is_floor(node)]


def _check_last(node: Any) -> None:
  """Raises ValueError where a floor is not the last of its chain.

  States of chains are plain tuples, of named chains `OrderedDict`; other states
  of optax are neither.
  """
  if _is_floor(node) or leaves.is_absent(node):
    return
  parts = jax.tree.leaves(
      node, is_leaf=lambda other: other is not node)
  holds = [bool(_floors(part)) for part in parts]
  if type(node) in (tuple, collections.OrderedDict) and any(holds):
    behind = holds[holds.index(True):].count(False)
    if behind:
      raise ValueError(
          f'The optimizer state has a magnitude floor with {behind}'
          ' transformation(s) behind it in the chain, which may move weights'
          ' off their codes: put magnitude_floor last, and give leaves that it'
          ' does not own to others by optax.partition.')
  for part, has in zip(parts, holds):
    if has:
      _check_last(part)
