"""The gradient that a step follows: plain, orthogonal, or taken uphill."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mansu_jax import transforms
from mansu_jax import types


def make(
    loss: Callable[..., Any], *, orthogonal: bool, movable: types.PyTree | None,
    sharpness: float) -> Callable[..., tuple[types.PyTree, Any]]:
  """Builds `(theta, *inputs) -> (gradient, metrics)`.

  Args:
    loss: `(theta, *inputs) -> (scalar, metrics)`; or a pair in place of the
      scalar. `loop.Problem` says what the arguments mean.
    orthogonal: whether the loss gives a pair.
    movable: bools that broadcast to theta, or None.
    sharpness: length of the step uphill.
  """
  gradient = functools.partial(_gradient, loss)
  if orthogonal:
    gradient = functools.partial(_orthogonal_gradient, loss, movable)
  if sharpness:
    gradient = functools.partial(_sharp_gradient, gradient, sharpness)
  return gradient


def _gradient(loss, theta, *inputs):
  """The gradient of a loss, and its metrics."""
  return jax.grad(loss, has_aux=True)(theta, *inputs)


def _orthogonal_gradient(loss, movable, theta, *inputs):
  """The same of a pair; see `Problem.orthogonal`."""
  _, pull, metrics = jax.vjp(
      lambda theta: loss(theta, *inputs), theta, has_aux=True)
  # One after the other: jaxlib 0.10.2 miscompiles both at once on CPU.
  forget, kept = (pull(side)[0] for side in ((1.0, 0.0), (0.0, 1.0)))

  if movable is not None:
    forget, kept = (jax.tree.map(lambda grad, mask: jnp.where(
        jnp.broadcast_to(mask, grad.shape), grad, 0), grads, movable)
                    for grads in (forget, kept))
  forget = transforms.remove_component(forget, kept)
  return jax.tree.map(jnp.add, forget, kept), metrics


def _sharp_gradient(gradient, radius, theta, *inputs):
  """The gradient at the end of a step uphill, and the metrics at its start.

  References:
    Foret et al., Sharpness-Aware Minimization, 2021 (arXiv 2010.01412)
  """
  grads, metrics = gradient(theta, *inputs)
  share = radius / jnp.maximum(
      optax.tree.norm(grads), jnp.finfo(jnp.float32).tiny)
  uphill = jax.tree.map(lambda x, g: x + share * g, theta, grads)
  return gradient(uphill, *inputs)[0], metrics
