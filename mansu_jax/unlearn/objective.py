"""The objective: forget term + lambda_kl retain KL + lambda_nll retain NLL.

The base's reference is computed once, as its final hidden states of width D at
the predicted positions; logits [V] are unembedded from these at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn import forget
from mansu_jax.unlearn import losses
from mansu_jax.unlearn import step_data
from mansu_jax.unlearn.forget import term as term_lib

# (theta, frozen, tokens [R, T], positions [R, T], segments [R, T])
#   -> hidden [R, T, D]; with `again=rows [A]`, [R + A, T, D]; with
#   `tap=layer`, also the residual stream [R, T, D] after that layer
Forward = Callable[..., types.Array]
# (theta, frozen, hidden [..., D]) -> logits [..., V]
Unembed = Callable[[types.PyTree, types.PyTree, types.Array], types.Array]


class Metrics(NamedTuple):
  """Scalars of one step, for the log and the record."""

  loss: types.Array
  forget: types.Array  # the forget term
  forget_nll: types.Array  # nats an answer
  retain_kl: types.Array  # nats a token
  retain_nll: types.Array  # nats a token
  text_kl: types.Array  # nats a token
  swapped_kl: types.Array  # nats a token
  routed_nll: types.Array  # nats an answer; 0 without the routed term


def make_loss(
    options: run_config.UnlearnConfig, forward: Forward, unembed: Unembed
) -> Callable[..., tuple[types.Array, Metrics]]:
  """Builds `loss(theta, frozen, base, batch) -> (scalar, Metrics)`.

  It is the sum of the two addends of `make_parts`.
  """
  parts = make_parts(options, forward, unembed)

  def loss(theta, frozen, base, batch):
    _, metrics = parts(theta, frozen, base, batch)
    return metrics.loss, metrics

  return loss


def make_parts(
    options: run_config.UnlearnConfig, forward: Forward, unembed: Unembed
) -> Callable[..., tuple[tuple[types.Array, types.Array], Metrics]]:
  """Builds `parts(theta, frozen, base, batch) -> ((forget, kept), Metrics)`.

  Forget is the weighted forget term, and kept are all others. With the loss
  `none` the metric `forget` is 0 and no gradient comes from the forget answers;
  their NLL is still measured. `base` is the full-precision pytree:
  `unembed(None, base, states)` gives the base's logits, whichever view `frozen`
  is.
  """
  read = ({'tap': options.rmu_layer} if forget.reads_states(options.loss)
          else {})

  def forget_term(step):
    if options.loss == 'none':  # A weight of 0 would turn inf into NaN.
      return jnp.zeros((), jnp.float32)
    term = forget.TERMS[options.loss].loss(options, step)
    if step.batch.choices is not None:
      tokens, target, valid = step.batch.choices
      term += options.choice_kl_weight * losses.choice_kl(
          target, step.at_prompt_end, tokens, valid).mean()
    return term

  def parts(theta, frozen, base, batch):
    packed, zero = batch.packed, jnp.zeros((), jnp.float32)
    routed = {} if batch.routed is None else {'again': batch.routed}
    hidden = forward(theta, frozen, *packed, **routed, **read)
    inner = None
    if read:
      hidden, inner = hidden
      inner = inner.reshape(-1, inner.shape[-1])[batch.forget.where]
    flat = hidden.reshape(-1, hidden.shape[-1])  # [(R + A) * T, D]
    kept = [getattr(batch, name) for name in step_data.KEPT]
    again = flat[batch.forget.where + packed.tokens.size] if routed else None
    at_routed, at_forget, at_refusals, *at_kept = _in_one(
        lambda states: unembed(theta, frozen, states), [again, *(
            flat[t.where] if t else None
            for t in (batch.forget, batch.refusals, *kept))])
    of_base = lambda states: unembed(None, base, states)
    references = _in_one(of_base, [t.reference if t else None for t in kept])

    def kl(targets, logits, reference):
      """The mean over tokens, and what of it enters the loss."""
      if targets is None:
        return zero, 0.0
      value = losses.token_kl(reference, logits)
      mean = losses.weighted_mean(value, targets.weight)
      if not options.kl_square_weight:
        return mean, mean
      square = losses.weighted_mean(value * value, targets.weight)
      return mean, mean + options.kl_square_weight * square

    nll, routed_nll = (
        None if logits is None else step_data.sequence_nll(logits, batch.forget)
        for logits in (at_forget, at_routed))
    forget_loss = forget_term(
        term_lib.Step(batch, at_forget, nll, routed_nll, of_base,
                      states=inner, refusal_logits=at_refusals))
    kls, kept_losses = zip(*map(kl, kept, at_kept, references))
    retain_kl, text_kl, swapped_kl, _ = kls
    retain_loss, text_loss, swapped_loss, prompt_loss = kept_losses
    retain_nll = losses.weighted_mean(
        losses.token_nll(at_kept[0], batch.retain.labels),
        batch.retain.weight)
    weighted = options.forget_weight * forget_loss
    others = (
        options.kl_weight * (
            retain_loss + options.text_weight * text_loss
            + options.swapped_weight * swapped_loss
            + options.prompt_weight * prompt_loss)
        + options.nll_weight * retain_nll)
    return (weighted, others), Metrics(
        weighted + others, forget_loss, nll.mean(), retain_kl, retain_nll,
        text_kl, swapped_kl, zero if routed_nll is None else routed_nll.mean())

  return parts


def _in_one(
    fn: Callable[[types.Array], types.Array],
    states: Sequence[types.Array | None]) -> list[types.Array | None]:
  """Applies `fn` to all [P, D] in one call: it reads the embedding once."""
  real = [s for s in states if s is not None]
  ends = np.cumsum([s.shape[0] for s in real])[:-1]
  found = iter(jnp.split(fn(jnp.concatenate(real)), ends))
  return [None if s is None else next(found) for s in states]
