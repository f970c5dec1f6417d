"""L = forget + lambda_kl KL(base || model) + lambda_nll NLL on retain.

Reference quantities are computed once, as final hidden states of width D at
the predicted positions, never as vocabulary logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from mansu_jax import config as run_config
from mansu_jax import types
from mansu_jax.unlearn import losses

# (theta, frozen, tokens [B, T]) -> hidden [B, T, D]
Forward = Callable[[types.PyTree, types.PyTree, types.Array], types.Array]
# (theta, frozen, hidden [..., D]) -> logits [..., V]
Unembed = Callable[[types.PyTree, types.PyTree, types.Array], types.Array]


class Spans(NamedTuple):
  """Sequences and the positions in them whose next token is predicted."""

  tokens: types.Array  # [B, T] int32
  where: types.Array  # [B, A] int32 positions
  labels: types.Array  # [B, A] int32, the token that follows each
  weight: types.Array  # [B, A] float32, 0 on padding
  reference: types.Array  # [B, A, D] the base's final hidden state there


class Batch(NamedTuple):
  """What one step sees. `exchanged` and `text` may be None."""

  forget: Spans
  exchanged: Spans | None  # forget prompts with another fact's answer
  prompts: Spans | None  # the forget prompts' own tokens
  retain: Spans
  text: Spans | None


class Metrics(NamedTuple):
  """Scalars of one step, for the progress line and the record."""

  loss: types.Array
  forget: types.Array  # the forget term
  forget_nll: types.Array  # nats an answer
  retain_kl: types.Array  # nats a token
  retain_nll: types.Array  # nats a token
  text_kl: types.Array  # nats a token


def gather_hidden(hidden: types.Array, where: types.Array) -> types.Array:
  """hidden [B, T, D] at positions [B, A] -> [B, A, D]."""
  return jnp.take_along_axis(hidden, where[..., None], axis=1)


def make_loss(
    options: run_config.UnlearnConfig, forward: Forward, unembed: Unembed
) -> Callable[..., tuple[types.Array, Metrics]]:
  """Builds `loss(theta, frozen, base, batch) -> (scalar, Metrics)`.

  `base` holds what `unembed(None, base, .)` needs to turn reference states
  into the full-precision base's logits, whichever view `frozen` is.
  """

  def logits_of(theta, frozen, spans):
    hidden = forward(theta, frozen, spans.tokens)
    return unembed(theta, frozen, gather_hidden(hidden, spans.where))

  def kl(logits, base, spans):
    reference = unembed(None, base, spans.reference)
    return losses.weighted_mean(
        losses.token_kl(reference, logits), spans.weight)

  def forget_terms(theta, frozen, base, batch):
    spans = batch.forget
    if options.loss == 'exchange':
      spans = batch.exchanged
      logits = logits_of(theta, frozen, spans)
      nll = jnp.sum(losses.token_nll(logits, spans.labels) * spans.weight, -1)
      return kl(logits, base, spans), nll.mean()
    logits = logits_of(theta, frozen, spans)
    nll = jnp.sum(losses.token_nll(logits, spans.labels) * spans.weight, -1)
    if options.loss == 'npo':
      base_logits = unembed(None, base, spans.reference)
      nll_base = jnp.sum(
          losses.token_nll(base_logits, spans.labels) * spans.weight, -1)
      term = losses.npo(nll, nll_base, beta=options.npo_beta)
    elif options.loss == 'simnpo':
      term = losses.simnpo(nll, spans.weight.sum(-1), beta=options.npo_beta)
    elif options.loss == 'bounded_nll':
      term = losses.bounded_nll(nll)
    else:
      term = losses.ascent(nll)
    return term.mean(), nll.mean()

  def loss(theta, frozen, base, batch):
    zero = jnp.zeros((), jnp.float32)
    forget, forget_nll = forget_terms(theta, frozen, base, batch)
    logits = logits_of(theta, frozen, batch.retain)
    retain_kl = kl(logits, base, batch.retain)
    retain_nll = losses.weighted_mean(
        losses.token_nll(logits, batch.retain.labels), batch.retain.weight)
    text_kl = prompt_kl = zero
    if batch.text is not None:
      text_kl = kl(logits_of(theta, frozen, batch.text), base, batch.text)
    if batch.prompts is not None:
      prompt_kl = kl(
          logits_of(theta, frozen, batch.prompts), base, batch.prompts)
    total = (
        options.forget_weight * forget
        + options.kl_weight * (retain_kl + options.text_weight * text_kl
                               + options.prompt_weight * prompt_kl)
        + options.nll_weight * retain_nll)
    return total, Metrics(
        total, forget, forget_nll, retain_kl, retain_nll, text_kl)

  return loss
