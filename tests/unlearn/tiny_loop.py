"""A problem of three weights for the loop, and a keeper on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax.unlearn import loop
from mansu_jax.unlearn import objective

START = (1.0, -2.0, 4.0)
SGD = optax.sgd(0.25)


def frozen(number, kl=0.0):
  return {'number': jnp.float32(number), 'kl': jnp.float32(kl)}


def view(number, kl=0.0, quantize=None):
  return loop.View(frozen=lambda: frozen(number, kl), quantize=quantize)


def loss_of(theta, given, base, batch):
  """Squared distance from the batch; metrics tell which views were seen."""
  value = jnp.sum(jnp.square(theta['w'] - batch))
  return value, objective.Metrics(
      loss=value, forget=given['number'], forget_nll=base['number'],
      retain_kl=given['kl'], retain_nll=value, text_kl=value,
      swapped_kl=value, routed_nll=value)


def problem(**changes):
  fields = {
      'theta': {'w': jnp.array(START)}, 'tx': SGD, 'loss': loss_of,
      'views': [view(0)], 'base': frozen(0)}
  return loop.Problem(**fields | changes)


def run(given=None, batches=lambda step: np.zeros(3, np.float32), *,
         steps=4, **options):
  return loop.run(
      given or problem(), batches, steps=steps,
      **dict(total_weights=6, max_retain_kl=3.0) | options)


class Memory:
  """A keeper that holds the state after each step on the host."""

  def __init__(self, found=None, stop=None):
    self.states, self._found, self._stop = {}, found, stop

  def restore(self, like):
    self.like = jax.tree.map(lambda x: (x.shape, x.dtype), like)
    return self._found

  def after(self, step, carry, history):
    self.states[step] = jax.tree.map(np.array, carry), list(history)
    if step == self._stop:
      raise KeyboardInterrupt
