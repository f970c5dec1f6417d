"""Losses of tokens and of distributions, which terms of the objective share."""

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


def weighted_mean(values: types.Array, weight: types.Array) -> types.Array:
  """Weighted mean of arrays of one shape; 0 if all weights are 0."""
  return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1e-9)
