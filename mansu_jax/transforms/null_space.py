"""Projects updates to directions that do not affect retained behaviour."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mansu_jax.quant import devices
from mansu_jax.quant import leaves


class NullSpaceState(NamedTuple):
  mask: optax.Updates  # leaf bool, shape of the param; None = untouched


class OffBasisState(NamedTuple):
  basis: optax.Updates  # leaf [..., d_in, R], orthonormal; None = untouched


def project_to_null_space(
    fisher: optax.Updates,
    *,
    quantile: float = 0.5,
    valid: optax.Updates | None = None,
) -> optax.GradientTransformation:
  """Zeroes updates of coordinates with a large retain Fisher.

  The null space of a diagonal Fisher is spanned by coordinates, so the
  projection is a mask. It keeps a coordinate if its Fisher is below the given
  quantile of its leaf, or equal to the minimum of the leaf: coordinates with
  Fisher zero are kept even if they exceed the quantile. Put it *after* the
  optimizer: weight decay, momentum or a preconditioner after the projection
  would move the masked coordinates again.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import transforms
    >>> fisher = {'w': jnp.array([3.0, 1.0, 2.0, 0.0])}
    >>> tx = transforms.project_to_null_space(fisher)
    >>> params = {'w': jnp.zeros(4)}
    >>> updates, _ = tx.update({'w': jnp.ones(4)}, tx.init(params))
    >>> print(updates['w'])
    [0. 1. 0. 1.]

  Args:
    fisher: a tree like the params, entries >= 0. Updates pass unchanged where
      a leaf is None or `optax.MaskedNode`.
    quantile: share of coordinates of each leaf to keep, in (0, 1]; 1 keeps all.
      `init` computes the mask; later changes have no effect.
    valid: a tree of bool masks that broadcast to the leaves, False for padding.
      Padding is zeroed and does not enter the quantile. None, for a leaf or the
      tree, means that all entries are valid.

  Returns:
    The transformation, whose state holds the mask.

  Raises:
    ValueError: `quantile` outside (0, 1]; at init, a `fisher` or `valid` that
      does not fit the params, or a Fisher that is negative or not finite.

  References:
    Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural
    networks", for the diagonal Fisher as a measure of importance.
  """
  if leaves.is_concrete(quantile) and not 0 < quantile <= 1:
    raise ValueError(
        f'quantile is the share of coordinates to keep: got {quantile}; wanted'
        ' a number in (0, 1].')

  def init_fn(params):
    if leaves.is_placeholder(params):
      return NullSpaceState(params)
    aligned = leaves.align_shapes(fisher, params, 'The Fisher')
    for name, leaf in leaves.flatten(aligned).items():
      _check_fisher(name, leaf)
    usable = leaves.tree_map(lambda _: None, params) if valid is None else (
        leaves.align(valid, params, 'The valid mask'))
    others = leaves.flatten(params)
    for name, leaf in leaves.flatten(usable).items():
      leaves.check_broadcast(leaf, others[name], name, 'The valid mask')
    keep_small = functools.partial(_keep_small, quantile=quantile)
    mask = lambda f, v: None if f is None else devices.elementwise(
        keep_small, f, f, v)
    make = lambda: leaves.tree_map(mask, aligned, usable)
    if not leaves.is_concrete((aligned, usable, quantile)):
      return NullSpaceState(make())
    # Otherwise XLA would constant-fold the quantile of a traced init.
    with jax.ensure_compile_time_eval():
      return NullSpaceState(make())

  def update_fn(updates, state, params=None):
    del params  # A fixed mask.
    return leaves.tree_map(_apply_mask, updates, state.mask), state

  return optax.GradientTransformation(init_fn, update_fn)


def project_off_basis(basis: optax.Updates) -> optax.GradientTransformation:
  """Removes from [..., d_in, d_out] updates their component in span(basis).

  If the basis spans the retained inputs of a matrix, the outputs for these
  inputs do not change. Leading axes are stacks of matrices. Put it after the
  optimizer; see `project_to_null_space`.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import transforms
    >>> tx = transforms.project_off_basis({'w': jnp.array([[1.0], [0.0]])})
    >>> params = {'w': jnp.zeros((2, 3))}
    >>> updates, _ = tx.update({'w': jnp.ones((2, 3))}, tx.init(params))
    >>> print(updates['w'])
    [[0. 0. 0.]
     [1. 1. 1.]]

  Args:
    basis: a tree like the params; leaf [..., d_in, R] with orthonormal columns
      and R < d_in, or None to pass the update unchanged.

  Returns:
    The transformation, whose state holds the basis.

  Raises:
    ValueError: at init, a basis that does not fit its leaf, spans the whole
      space, or is not orthonormal.

  References:
    Saha et al. 2021, "Gradient Projection Memory for Continual Learning".
  """

  def init_fn(params):
    if leaves.is_placeholder(params):
      return OffBasisState(jax.tree.map(jnp.array, basis))
    aligned = leaves.align(basis, params, 'The null-space basis')
    others = leaves.flatten(params)
    for name, leaf in leaves.flatten(aligned).items():
      if leaf is not None:
        _check_basis(name, leaf, others[name])
    return OffBasisState(jax.tree.map(jnp.array, aligned))

  def update_fn(updates, state, params=None):
    del params  # Linear in the updates alone.
    remove = lambda u, q: (u - q @ (q.mT @ u)).astype(u.dtype)
    project = lambda u, q: u if q is None or leaves.is_absent(u) else (
        devices.elementwise(remove, u, u, q))
    return leaves.tree_map(project, updates, state.basis), state

  return optax.GradientTransformation(init_fn, update_fn)


def remove_component(
    updates: optax.Updates, direction: optax.Updates) -> optax.Updates:
  """Removes from each leaf its component along the leaf of another tree.

  With the gradient of what is kept as direction, the updates do not change this
  to first order.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import transforms
    >>> transforms.remove_component(
    ...     {'w': jnp.array([3.0, 4.0])}, {'w': jnp.array([0.0, 2.0])})
    {'w': Array([3., 0.], dtype=float32)}

  Args:
    updates: a tree of arrays, with None where there is nothing.
    direction: a tree like it, of any length. A leaf of zeros removes nothing.

  Returns:
    A tree like `updates`.

  References:
    Zhou et al. 2025, "Geometric-disentanglement Unlearning" (arXiv 2511.17100),
    which projects in the metric of the optimizer; here it is the Euclidean one.
  """

  def remove(update, along):
    if leaves.is_absent(update):
      return update
    along = along.astype(jnp.float32)
    largest = jnp.max(jnp.abs(along), initial=0)
    along = jnp.where(largest > 0, along / largest, 0)  # Squares do not vanish.
    share = jnp.sum(update * along) / jnp.maximum(jnp.sum(along * along), 1)
    return (update - share * along).astype(update.dtype)

  return leaves.tree_map(remove, updates, direction)


def _apply_mask(update, mask):
  if mask is None or leaves.is_absent(update):
    return update
  return jnp.where(mask, update, jnp.zeros_like(update))


def _keep_small(fisher, valid, quantile):
  """Bool mask of the coordinates of one leaf to keep."""
  fisher = jnp.asarray(fisher, jnp.float32)
  if valid is None:
    valid = jnp.ones((), bool)
  valid = jnp.broadcast_to(jnp.asarray(valid, bool), fisher.shape)
  if not fisher.size:
    return valid
  known = jnp.where(valid, fisher, jnp.nan)
  threshold = jnp.where(
      jnp.asarray(quantile) < 1, jnp.nanquantile(known, quantile), jnp.inf)
  return valid & ((fisher < threshold) | (fisher == jnp.nanmin(known)))


def _check_fisher(name, leaf):
  if leaf is None or not leaves.is_concrete(leaf):
    return
  leaves.check_finite(leaf, name, 'The Fisher of')
  negative = leaves.count_now(_count_negative, leaf)
  if negative:
    raise ValueError(
        f'The Fisher of {name!r} has {negative} negative entries, but it is a'
        ' mean of squares: pass squared gradients, not gradients.')


@jax.jit
def _count_negative(leaf):
  return jnp.sum(leaf < 0)


@jax.jit
def _gram_error(basis):
  """Largest deviation of the Gram matrix from the identity."""
  gram = basis.mT @ basis
  identity = jnp.broadcast_to(jnp.eye(basis.shape[-1]), gram.shape)
  return jnp.max(jnp.abs(gram - identity), initial=0)


def _check_basis(name, basis, param):
  basis_shape, param_shape = jnp.shape(basis), jnp.shape(param)
  fits = (
      len(param_shape) >= 2 and len(basis_shape) == len(param_shape)
      and basis_shape[:-1] == param_shape[:-1]
      and basis_shape[-1] < param_shape[-2])
  if not fits:
    wanted = ', '.join(map(str, (*param_shape[:-1], 'rank')))
    raise ValueError(
        f'The null-space basis of {name!r} has shape {basis_shape}, but the'
        f' parameter is {param_shape}; wanted [{wanted}] with rank <'
        f' {param_shape[-2] if len(param_shape) > 1 else "d_in"}. A full-rank'
        ' basis would remove every update: use fewer directions.')
  if leaves.is_concrete(basis):
    with jax.ensure_compile_time_eval():
      error = float(devices.replicated(_gram_error, jnp.asarray(basis)))
    if not error < 1e-3:
      raise ValueError(
          f'The null-space basis of {name!r} is not orthonormal: its Gram'
          f' matrix deviates from the identity by {error:.2g}. Use the Q factor'
          ' of a QR factorization.')
