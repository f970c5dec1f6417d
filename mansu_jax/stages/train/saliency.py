"""Trains only the matrices in which the forget loss has the largest gradient.

Few matrices with a large learning rate move far enough to outlast rounding.

References:
  Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, 2024
  (arXiv 2410.16454): SURE
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.models import layout
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.train import edits
from mansu_jax.unlearn import loop
from mansu_jax.unlearn import objective
from mansu_jax.unlearn import step_data

BATCHES = 4  # Whose mean gradient is taken.


def restrict(
    options: run_config.UnlearnConfig, edit: edits.Edit,
    batches: Callable[[int], step_data.Batch], cache: checkpoints.NoCache
) -> edits.Edit:
  """The edit, in which only the salient matrices may move.

  Args:
    options: objective, and the share of the matrices.
    edit: of every weight.
    batches: from `training.with_margins`.
    cache: keeps the norms for a resumed run.
  """
  if not options.saliency:
    return edit

  def measure():
    add = program(options, edit)
    total = jax.tree.map(
        lambda x: jnp.zeros_like(x, jnp.float32), matrices(edit.theta))
    for step in range(BATCHES):
      total = add(total, edit.theta, edit.base, batches(step))
    return {name: np.asarray(x) for name, x in norms_of(total).items()}

  norms = cache.get_or_compute('saliency', measure)
  chosen = largest(norms, options.saliency, _trained(edit, norms))
  movable = mask(chosen, edit.theta)
  return dataclasses.replace(
      edit, movable=movable, report=edit.report | {
          'movable': edits.count_movable(movable, edit.theta),
          'salient': {name: np.flatnonzero(layers).tolist()
                      for name, layers in chosen.items() if layers.any()}})


def _trained(
    edit: edits.Edit, norms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Which matrices the edit may train, as bools like the norms."""
  if edit.movable is None:
    return {name: np.ones(x.shape, bool) for name, x in norms.items()}
  part = tree_paths.flatten(edit.movable)
  return {name: np.broadcast_to(np.reshape(part[name], -1), x.shape)
          for name, x in norms.items()}


def mask(chosen: dict[str, np.ndarray], theta: types.PyTree) -> types.PyTree:
  """Bools that broadcast to theta, True in the chosen matrices only."""
  return tree_paths.map_named(
      lambda name, x: np.zeros((), bool) if name not in chosen else (
          chosen[name].reshape(-1, *[1] * (x.ndim - 1))), theta)


def matrices(theta: types.PyTree) -> dict[str, types.Array]:
  """The leaves that stack a matrix of each layer, by name."""
  return {name: x for name, x in tree_paths.flatten(theta).items()
          if name in layout.MATRICES}


def program(
    options: run_config.UnlearnConfig, edit: edits.Edit
) -> Callable[..., dict[str, types.Array]]:
  """Jitted `(total, theta, base, batch) -> total + the forget gradient`."""
  parts = objective.make_parts(options, edit.forward, edit.unembed)

  def forget(theta, base, batch):
    (value, _), _ = parts(theta, base, base, batch)
    return value

  def add(total, theta, base, batch):
    gradient = jax.grad(forget)(loop.float32(theta), base, batch)
    return jax.tree.map(jnp.add, total, matrices(gradient))

  return jax.jit(add, donate_argnums=0)


@jax.jit
def norms_of(total: dict[str, types.Array]) -> dict[str, types.Array]:
  """[L] of each leaf."""
  return {name: jnp.sqrt(jnp.sum(
      jnp.square(x), tuple(range(1, x.ndim))))
          for name, x in total.items()}


def largest(
    norms: dict[str, np.ndarray], share: float,
    trained: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The share of the trained matrices with the largest norms, at least one.

  Matrices without a gradient are left out, even if fewer remain.

  Example:
    >>> largest({'q': np.array([1.0, 4.0]), 'k': np.array([3.0, 2.0])}, 0.5,
    ...         {'q': np.ones(2, bool), 'k': np.ones(2, bool)})
    {'q': array([False,  True]), 'k': array([ True, False])}

  Args:
    norms: [L] of each leaf.
    share: of the trained matrices, in (0, 1].
    trained: bools of the same shapes.

  Returns:
    Bools of the same shapes.

  Raises:
    ValueError: a norm is not finite, or no trained matrix has a gradient.
  """
  values = np.concatenate(list(norms.values()))
  allowed = np.concatenate([trained[name] for name in norms])
  if not np.isfinite(values).all() or not (values[allowed] > 0).any():
    raise ValueError(
        'The gradient of the forget loss is 0 in every matrix that may be'
        ' trained, or not finite in some; wanted one by which'
        ' --unlearn_saliency can choose. Train other matrices or layers, or use'
        ' another loss.')
  count = math.ceil(share * allowed.sum())
  first = np.argsort(-np.where(allowed, values, 0), kind='stable')[:count]
  chosen = np.isin(np.arange(len(values)), first) & (values > 0)
  ends = np.cumsum([len(x) for x in norms.values()])[:-1]
  return dict(zip(norms, np.split(chosen, ends)))
