"""Zeroes updates outside the circuit."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import leaves


class CircuitMaskState(NamedTuple):
  mask: optax.Updates  # leaf bool, broadcasts to the param; None = absent


def mask_to_circuit(mask: optax.Updates) -> optax.GradientTransformation:
  """Zeroes every update outside the circuit.

  `optax.masked` passes updates outside its mask unchanged; this transformation
  zeroes them. Put it *after* the optimizer: with a mask before AdamW, weight
  decay still moves the weights outside.

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
      it. Leaves broadcast to the param. None or `optax.MaskedNode` zeroes the
      whole leaf.

  Returns:
    The transformation, whose state holds the mask.

  Raises:
    ValueError: at init, a missing leaf, a shape that does not broadcast to the
      param, or an entry other than 0 and 1.
  """

  def init_fn(params):
    if leaves.is_placeholder(params):
      return CircuitMaskState(jax.tree.map(jnp.array, mask))
    aligned = leaves.align(mask, params, 'The circuit mask')
    others = leaves.flatten(params)
    for name, leaf in leaves.flatten(aligned).items():
      _check_mask(name, leaf, others[name])
    as_bool = lambda p, m: None if leaves.is_absent(p) else (
        jnp.array(False if m is None else m) != 0)
    return CircuitMaskState(leaves.tree_map(as_bool, params, aligned))

  def update_fn(updates, state, params=None):
    del params  # A fixed mask.
    keep = lambda u, m: (
        u if leaves.is_absent(u) else jnp.where(m, u, jnp.zeros_like(u)))
    return leaves.tree_map(keep, updates, state.mask), state

  return optax.GradientTransformation(init_fn, update_fn)


def _check_mask(name, mask, param):
  if mask is None:
    return
  leaves.check_broadcast(mask, param, name, 'The circuit mask')
  if leaves.is_concrete(mask):
    invalid = leaves.count_now(_count_invalid, mask)
    if invalid:
      raise ValueError(
          f'The circuit mask has {invalid} entries at {name!r} that are neither'
          ' 0 nor 1: threshold the scores first.')


@jax.jit
def _count_invalid(mask):
  return jnp.sum((mask != 0) & (mask != 1))
