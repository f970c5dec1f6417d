"""Forget and retain losses, per example.

`nll` is the sequence NLL in nats: summed over the answer's tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import types


def token_nll(logits: types.Array, labels: types.Array) -> types.Array:
  """-log p(label) of logits [..., V] and labels [...], in nats."""
  picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked


def token_kl(reference: types.Array, logits: types.Array) -> types.Array:
  """KL(reference || model) of logits [..., V], in nats a token."""
  log_p = jax.nn.log_softmax(reference, axis=-1)
  log_q = jax.nn.log_softmax(logits, axis=-1)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def distribution_kl(target: types.Array, logits: types.Array) -> types.Array:
  """KL(target || model) of probabilities and logits, both [..., V], nats."""
  log_q = jax.nn.log_softmax(logits, axis=-1)
  return jnp.sum(jax.scipy.special.xlogy(target, target) - target * log_q, -1)


def choice_kl(
    target: types.Array, logits: types.Array, tokens: types.Array,
    valid: types.Array) -> types.Array:
  """KL(target || model renormalised over some tokens), in nats.

  It sees the order among rare tokens, which barely changes a KL over the whole
  vocabulary.

  Args:
    target: [..., K] probabilities of the tokens, 0 where not valid.
    logits: [..., V] of the model.
    tokens: [..., K] int32.
    valid: [..., K] bool, False on padding.
  """
  picked = jnp.take_along_axis(logits, tokens, axis=-1)
  return distribution_kl(target, jnp.where(valid, picked, -1e9))


def npo(
    nll: types.Array, nll_base: types.Array, *, beta: float) -> types.Array:
  """Negative preference optimization: -(2/beta) log sigma(beta (nll - nll_0)).

  References:
    Zhang et al., Negative Preference Optimization, 2024 (arXiv 2404.05868)
  """
  return -2 / beta * jax.nn.log_sigmoid(beta * (nll - nll_base))


def simnpo(
    nll: types.Array, length: types.Array, *, beta: float,
    margin: float = 0.0) -> types.Array:
  """Reference-free NPO on the length-normalised NLL.

  References:
    Fan et al., Simplicity Prevails, 2024 (arXiv 2410.07163)
  """
  return -2 / beta * jax.nn.log_sigmoid(beta * nll / length - margin)


def bounded_nll(nll: types.Array) -> types.Array:
  """-log(1 - p(answer)): falls to 0 as the answer becomes impossible.

  Unlike plain ascent it has a lower bound, and its gradient fades as the
  answer is forgotten (the unlikelihood of the sequence).
  """
  # An offset, not a clip, keeps the gradient of a certain answer.
  return -jnp.log(-jnp.expm1(-(nll + 1e-6)))


def excess(
    nll: types.Array, nll_prior: types.Array, *,
    margin: types.Array | float = 0.0, slope: float = 16.0) -> types.Array:
  """Half the squared excess of log p(answer) over its prior, 0 below it.

  The prior is the answer's log-probability where nothing asks for it. So the
  loss ends where the answer is no likelier than for other facts, and needs no
  wrong answers. Beyond `slope` nats it grows linearly (the Huber loss).

  Args:
    nll: of the model.
    nll_prior: minus the prior.
    margin: nats below the prior at which the loss ends.
    slope: largest gradient, in nats per nat.
  """
  over = jax.nn.relu(nll_prior + margin - nll)
  inside = jnp.minimum(over, slope)
  return inside * (over - 0.5 * inside)


def guess_nll(
    logits: types.Array, tokens: types.Array, relation: types.Array
) -> tuple[types.Array, types.Array]:
  """NLL of answers after their own prompts, and after each other's.

  A model that knows nothing of a subject gives its answer the same probability
  whatever the subject is.

  Args:
    logits: [B, V] at the end of each prompt.
    tokens: [B] int32, first token of each answer.
    relation: [B] int32, relation of each prompt.

  Returns:
    [B] after the own prompt, and [B] the mean after the other prompts of the
    relation whose answers begin otherwise; -1e9 where there is none.
  """
  nll = jax.nn.logsumexp(  # [prompt, answer]
      logits, axis=-1, keepdims=True) - logits[:, tokens]
  other = (tokens[:, None] != tokens[None]) & (
      relation[:, None] == relation[None])
  count = other.sum(0)
  guess = jnp.where(other, nll, 0).sum(0) / jnp.maximum(count, 1)
  return jnp.diagonal(nll), jnp.where(count > 0, guess, -1e9)


def ascent(nll: types.Array) -> types.Array:
  """-nll: plain gradient ascent, unbounded below; a baseline only."""
  return -nll


def weighted_mean(values: types.Array, weight: types.Array) -> types.Array:
  """Weighted mean of arrays of one shape; 0 if all weights are 0."""
  return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1e-9)
