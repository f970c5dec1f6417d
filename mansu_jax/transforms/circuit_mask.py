"""Zeroes updates outside the circuit."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import leaves


class CircuitMaskState(NamedTuple):
  mask: optax.Updates  # leaf bool, broadcasts to the param


def mask_to_circuit(mask: optax.Updates) -> optax.GradientTransformation:
  """Zeroes every update outside the circuit.

  Unlike `optax.masked`, which hands updates outside its mask through unchanged,
  this freezes what is outside. Put it *after* the optimizer: a mask in front of
  AdamW still lets weight decay move the weights outside.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import transforms
    >>> mask = {'w': jnp.array([[1], [0]]), 'b': False}
    >>> tx = transforms.mask_to_circuit(mask)
    >>> params = {'w': jnp.zeros((2, 2)), 'b': jnp.zeros(2)}
    >>> updates = {'w': jnp.ones((2, 2)), 'b': jnp.ones(2)}
    >>> print(tx.update(updates, tx.init(params))[0]['w'])
    [[1. 1.]
     [0. 0.]]

  Args:
    mask: a tree like the params; True or 1 keeps an update, False or 0 zeroes
      it. Leaves may be scalars or anything that broadcasts to the param. None
      is refused for a param that exists: say True or False.

  Returns:
    The transformation, whose state holds the mask.

  Raises:
    ValueError: at init, a leaf that is missing, None, of a shape that does not
      broadcast to the param, or not 0 or 1.
  """

  def init_fn(params):
    leaves.check_names(mask, params, 'The circuit mask')
    shapes = leaves.named(params)
    for name, leaf in leaves.named(mask).items():
      _check_mask(name, leaf, shapes[name])
    as_bool = lambda leaf: jnp.array(leaf) != 0
    return CircuitMaskState(jax.tree.map(as_bool, mask))

  def update_fn(updates, state, params=None):
    del params  # A fixed mask.
    keep = lambda u, m: (
        None if u is None else jnp.where(m, u, jnp.zeros_like(u)))
    return leaves.tree_map(keep, updates, state.mask), state

  return optax.GradientTransformation(init_fn, update_fn)


def _check_mask(name, mask, param):
  if param is None:
    return
  if mask is None:
    raise ValueError(
        f'The circuit mask is None at {name!r}, which could mean either way:'
        ' give True to let the leaf move or False to freeze it.')
  leaves.check_broadcast(mask, param, name, 'The circuit mask')
  if leaves.is_concrete(mask):
    values = jnp.asarray(mask)
    odd = int(jnp.sum((values != 0) & (values != 1)))
    if odd:
      raise ValueError(
          f'The circuit mask has {odd} entries at {name!r} that are neither 0'
          ' nor 1: threshold the scores first.')
