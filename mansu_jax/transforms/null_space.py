"""Keeps updates in what the retained behaviour does not see."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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
  """Zeroes updates where the retain Fisher is not small in its leaf.

  A diagonal Fisher has only coordinate null spaces, so the projection is a
  mask: a coordinate is kept if its Fisher is under the given quantile of its
  leaf, or the least there: where many are zero, or all alike, these stay. It
  belongs *after* the adaptive step: weight decay, momentum or a preconditioner
  put behind it would move the masked coordinates again.

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
    fisher: a tree like the params, entries >= 0; a leaf that is None or
      `optax.MaskedNode` passes through.
    quantile: share of each leaf's coordinates to keep, in (0, 1]; 1 keeps all.
      Read at init: the mask stays as it is then.
    valid: a tree of bool masks that broadcast to the leaves, False where an
      entry is padding: it is zeroed and does not enter the quantile. A None
      leaf, or None for the tree, means that all are valid.

  Returns:
    The transformation, whose state holds the mask.

  Raises:
    ValueError: `quantile` outside (0, 1]; at init, a `fisher` or `valid` that
      does not fit the params, or a Fisher that is negative or not finite.

  References:
    Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural
    networks", for the diagonal Fisher as what earlier behaviour depends on.
  """
  if leaves.is_concrete(quantile) and not 0 < quantile <= 1:
    raise ValueError(
        f'quantile is the share of coordinates to keep: got {quantile}, wanted'
        ' a number in (0, 1].')

  def init_fn(params):
    if leaves.is_placeholder(params):
      return NullSpaceState(params)
    aligned = leaves.align_shapes(fisher, params, 'The Fisher')
    for name, leaf in leaves.named(aligned).items():
      _check_fisher(name, leaf)
    usable = leaves.tree_map(lambda _: None, params) if valid is None else (
        leaves.align(valid, params, 'The valid mask'))
    others = leaves.named(params)
    for name, leaf in leaves.named(usable).items():
      leaves.check_broadcast(leaf, others[name], name, 'The valid mask')
    keep_small = functools.partial(_keep_small, quantile=quantile)
    mask = lambda f, v: None if f is None else leaves.elementwise(
        keep_small, f, f, v)
    make = lambda: leaves.tree_map(mask, aligned, usable)
    if not leaves.is_concrete((aligned, usable, quantile)):
      return NullSpaceState(make())
    with jax.ensure_compile_time_eval():  # Else a traced init would fold it.
      return NullSpaceState(make())

  def update_fn(updates, state, params=None):
    del params  # A fixed mask.
    return leaves.tree_map(_apply_mask, updates, state.mask), state

  return optax.GradientTransformation(init_fn, update_fn)


def project_off_basis(basis: optax.Updates) -> optax.GradientTransformation:
  """Removes, per [..., d_in, d_out] leaf, the update's part in span(basis).

  With a basis of the retained inputs of a matrix, their outputs do not move.
  Leading axes are stacks of matrices. As `project_to_null_space`, it belongs
  after the adaptive step.

  Args:
    basis: a tree like the params; leaf [..., d_in, R] with orthonormal columns
      and R < d_in, or None to pass the leaf through.

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
    shapes = leaves.named(params)
    for name, leaf in leaves.named(aligned).items():
      if leaf is not None:
        _check_basis(name, leaf, shapes[name])
    return OffBasisState(jax.tree.map(jnp.array, aligned))

  def update_fn(updates, state, params=None):
    del params  # Linear in the updates alone.
    off = lambda u, q: (u - q @ (q.mT @ u)).astype(u.dtype)
    remove = lambda u, q: u if q is None or leaves.is_absent(u) else (
        leaves.elementwise(off, u, u, q))
    return leaves.tree_map(remove, updates, state.basis), state

  return optax.GradientTransformation(init_fn, update_fn)


def _apply_mask(update, mask):
  if mask is None or leaves.is_absent(update):
    return update
  return jnp.where(mask, update, jnp.zeros_like(update))


def _keep_small(fisher, valid, quantile):
  """Bool mask of the coordinates to keep in one leaf."""
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
        f'The Fisher of {name!r} has {negative} negative entries: it is a mean'
        ' of squares. Pass the squares, not the gradients.')


@jax.jit
def _count_negative(leaf):
  return jnp.sum(leaf < 0)


@jax.jit
def _skew(basis):
  """How far columns are from orthonormal."""
  gram = basis.mT @ basis
  return jnp.max(jnp.abs(gram - jnp.eye(basis.shape[-1])), initial=0)


def _check_basis(name, basis, param):
  basis_shape, param_shape = jnp.shape(basis), jnp.shape(param)
  fits = (
      len(param_shape) >= 2 and len(basis_shape) == len(param_shape)
      and basis_shape[:-1] == param_shape[:-1]
      and basis_shape[-1] < param_shape[-2])
  if not fits:
    wanted = ', '.join(map(str, (*param_shape[:-1], 'rank')))
    raise ValueError(
        f'Null-space basis for {name!r} has shape {basis_shape}, but the'
        f' parameter is {param_shape}: expected [{wanted}] with rank <'
        f' {param_shape[-2] if len(param_shape) > 1 else "d_in"}. A full-rank'
        ' basis leaves nothing to edit; give fewer directions.')
  if leaves.is_concrete(basis):
    with jax.ensure_compile_time_eval():
      error = float(leaves.whole(_skew, jnp.asarray(basis)))
    if not error < 1e-3:
      raise ValueError(
          f'Null-space basis for {name!r} is not orthonormal: its Gram matrix'
          f' is {error:.2g} from the identity. Take the Q of a QR'
          ' factorization.')
