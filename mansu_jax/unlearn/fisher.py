"""Diagonal Fisher information from per-example gradients.

F_i = mean over examples of (d log p(example) / d theta_i)^2, in float32. The
square is taken of each example's own gradient: squaring the gradient of a
batch mean is a different and wrong quantity.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.runtime import sharding

LogProb = Callable[[types.PyTree, types.PyTree, types.PyTree], types.Array]


@functools.partial(jax.jit, static_argnames=('log_prob', 'chunk'))
def sum_of_squares(log_prob, theta, frozen, examples, weights, *, chunk):
  """Sum over examples of the weighted squared per-example gradients.

  Args:
    log_prob: as in `diagonal_fisher`; static.
    theta: as in `diagonal_fisher`.
    frozen: as in `diagonal_fisher`.
    examples: pytree with a leading axis of whole chunks.
    weights: [examples], 0 on padding.
    chunk: as in `diagonal_fisher`; static.
  """

  def split(leaf):
    return leaf.reshape(-1, chunk, *leaf.shape[1:])

  def squared(example, weight):
    grads = jax.grad(log_prob)(theta, frozen, example)
    return jax.tree.map(
        lambda g: weight * jnp.square(g.astype(jnp.float32)), grads)

  def add_chunk(total, part):
    squares = jax.vmap(squared)(*jax.tree.map(sharding.constrain_rows, part))
    return jax.tree.map(lambda t, s: t + s.sum(0), total, squares), None

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), theta)
  chunks = jax.tree.map(split, (examples, weights))
  return jax.lax.scan(add_chunk, zeros, chunks)[0]


def diagonal_fisher(
    log_prob: LogProb, theta: types.PyTree, frozen: types.PyTree,
    examples: types.PyTree, *, chunk: int = 4) -> types.PyTree:
  """The diagonal Fisher of `theta` over examples.

  The labels decide the kind: labels of the data give the empirical Fisher,
  labels drawn from the model (`draw_labels`) the true Fisher.

  Args:
    log_prob: `(theta, frozen, example) -> scalar` log-probability (nats) of
      one example without its leading axis; it masks padding.
    theta: the differentiated pytree (the circuit slices).
    frozen: all other arrays that `log_prob` needs, so that the compiled program
      holds none of them as constants.
    examples: pytree with a leading axis of examples.
    chunk: per-example gradients in memory at once: `chunk` times the size of
      `theta` in float32.

  Returns:
    A tree like `theta`, float32, >= 0.

  Raises:
    ValueError: no examples.

  Example:
    >>> import jax.numpy as jnp
    >>> log_prob = lambda theta, frozen, x: -0.5 * (x - theta['mean']) ** 2
    >>> examples = jnp.array([-1.0, 1.0, 3.0, 1.0])
    >>> diagonal_fisher(log_prob, {'mean': jnp.array(1.0)}, None, examples)
    {'mean': Array(2., dtype=float32)}
  """
  num = jax.tree.leaves(examples)[0].shape[0]
  if num == 0:
    raise ValueError('Fisher over 0 examples; wanted at least 1: give a retain'
                     ' set with --data_retain or raise --fisher_sequences.')
  padding = -num % chunk
  weights = jnp.pad(jnp.ones(num, jnp.float32), (0, padding))
  examples = jax.tree.map(
      lambda x: jnp.concatenate([x, jnp.repeat(x[:1], padding, 0)]), examples)
  total = sum_of_squares(
      log_prob, theta, frozen, examples, weights, chunk=chunk)
  return jax.tree.map(lambda x: x / num, total)


def draw_labels(key: types.Array, logits: types.Array) -> types.Array:
  """Labels [...] drawn from softmax(logits) [..., V], for the true Fisher."""
  return jax.random.categorical(key, logits.astype(jnp.float32))


def predicted_kl(fisher: types.PyTree, delta: types.PyTree) -> types.Array:
  """1/2 sum_i F_i d_i^2: the second-order estimate of the retain KL.

  In nats an example, under the diagonal approximation. Theorem 1 of the paper
  is this sum over the circuit. It is an estimate: runs also measure the KL.
  """
  terms = jax.tree.map(
      lambda f, d: jnp.sum(f * jnp.square(d.astype(jnp.float32))),
      fisher, delta)
  return 0.5 * sum(jax.tree.leaves(terms))
