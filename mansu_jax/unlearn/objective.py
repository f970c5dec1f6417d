"""The objective: forget term + lambda_kl retain KL + lambda_nll retain NLL.

The base's reference is computed once, as its final hidden states of width D at
the predicted positions; logits [V] are unembedded from these at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn import losses

# (theta, frozen, tokens [R, T], positions [R, T], segments [R, T])
#   -> hidden [R, T, D]; with `again=rows [A]`, [R + A, T, D]
Forward = Callable[..., types.Array]
# (theta, frozen, hidden [..., D]) -> logits [..., V]
Unembed = Callable[[types.PyTree, types.PyTree, types.Array], types.Array]


class Packed(NamedTuple):
  """Rows that hold several sequences each."""

  tokens: types.Array  # [R, T] int32
  positions: types.Array  # [R, T] int32, within the sequence
  segments: types.Array  # [R, T] int32, which sequence; -1 on padding


class Targets(NamedTuple):
  """The P predicted positions of B sequences, sequence after sequence.

  They are not padded to the longest sequence: the logits of a position cost as
  much as a quarter of the layers do for a token.
  """

  where: types.Array  # [P] int32, positions in the flattened rows
  labels: types.Array  # [P] int32, the token that follows each
  weight: types.Array  # [P] float32, 0 on padding, which is at the end
  reference: types.Array  # [P, D] the base's final hidden state
  sequence: types.Array  # [P] int32, the sequence of each position
  first: types.Array  # [B] int32, each sequence's first index, 0 .. P - 1


class Choices(NamedTuple):
  """Answers at the end of each forget prompt, by first tokens."""

  tokens: types.Array  # [B, K] int32, the right answer's and the others'
  target: types.Array  # [B, K] float32 probabilities, 0 for the right answer
  valid: types.Array  # [B, K] bool, False on padding


class OtherPrompts(NamedTuple):
  """What the base says after prompts of other facts, for each forget prompt."""

  nll: types.Array  # [B], mean NLL of the forget answer there, nats
  states: types.Array  # [B, K, D], its state at the ends of these prompts
  relation: types.Array  # [B] int32, relation of the forget prompt


class Batch(NamedTuple):
  """The data of one step; all parts are in the same packed rows.

  With the loss `answer_swap`, the forget prompts continue with other facts'
  answers, and `forget.reference` is the base's state at those facts' own
  prompts. With the loss `group_marginal`, `group_marginal` is the target at the
  end of each forget prompt.
  """

  packed: Packed
  forget: Targets
  retain: Targets
  text: Targets | None
  prompts: Targets | None  # The forget prompts' own tokens.
  group_marginal: types.Array | None = None  # [B, V] float32 probabilities
  choices: Choices | None = None  # Of the forget prompts.
  prior: OtherPrompts | None = None
  routed: types.Array | None = None  # [A] the first rows, with the forget set
  swapped: Targets | None = None  # Retain phrasings about forget subjects.
  guess_margin: types.Array | None = None  # Nats; None: that of the options.


KEPT = 'retain', 'text', 'swapped', 'prompts'  # Targets of the retain KL.


def about_facts(batch: Batch) -> dict[str, Targets]:
  """The targets of the retain KL but general text, by name."""
  found = {name: getattr(batch, name) for name in KEPT if name != 'text'}
  return {name: targets for name, targets in found.items()
          if targets is not None}


def with_references(batch: Batch, states: Mapping[str, types.Array]) -> Batch:
  """The batch with another model's states as what the retain KL retains.

  Args:
    batch: a batch.
    states: [P, D] final states of some targets, by name. Others keep theirs.
  """
  return batch._replace(**{
      name: getattr(batch, name)._replace(reference=reference)
      for name, reference in states.items()})


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

  With the loss `none` the metric `forget` is 0 and no gradient comes from the
  forget answers; their NLL is still measured. `base` is the full-precision
  pytree: `unembed(None, base, states)` gives the base's logits, whichever view
  `frozen` is.
  """

  def forget_term(logits, base, batch):
    targets = batch.forget
    nll = _sequence_nll(logits, targets)
    if options.loss == 'none':  # A weight of 0 would turn inf into NaN.
      return jnp.zeros((), jnp.float32), nll.mean()
    at_prompt_end = logits[targets.first]  # [B, V]
    if options.loss == 'group_marginal':
      term = losses.distribution_kl(batch.group_marginal, at_prompt_end).mean()
    elif options.loss == 'answer_swap':
      reference = unembed(None, base, targets.reference)
      term = losses.weighted_mean(
          losses.token_kl(reference, logits), targets.weight)
    elif options.loss == 'prior':
      term = losses.excess(nll, batch.prior.nll).mean()
      if options.guess_weight:
        margin = batch.guess_margin
        if margin is None:
          margin = options.guess_margin
        own, guess = losses.guess_nll(
            at_prompt_end, targets.labels[targets.first], batch.prior.relation)
        term += options.guess_weight * losses.excess(
            own, jax.lax.stop_gradient(guess), margin=margin).mean()
      if options.marginal_weight:
        elsewhere = unembed(None, base, batch.prior.states)  # [B, K, V]
        term += options.marginal_weight * losses.token_kl(
            elsewhere, at_prompt_end[:, None]).mean()
    elif options.loss == 'npo':
      nll_base = _sequence_nll(
          unembed(None, base, targets.reference), targets)
      term = losses.npo(nll, nll_base, beta=options.npo_beta).mean()
    elif options.loss == 'simnpo':
      term = losses.simnpo(
          nll, _sequence_sum(targets.weight, targets),
          beta=options.npo_beta).mean()
    elif options.loss == 'bounded_nll':
      term = losses.bounded_nll(nll).mean()
    else:
      term = losses.ascent(nll).mean()
    if batch.choices is not None:
      tokens, target, valid = batch.choices
      term += options.choice_kl_weight * losses.choice_kl(
          target, at_prompt_end, tokens, valid).mean()
    return term, nll.mean()

  def routed_term(logits, batch):
    if logits is None:
      return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    nll = _sequence_nll(logits, batch.forget)
    return losses.excess(nll, batch.prior.nll).mean(), nll.mean()

  def loss(theta, frozen, base, batch):
    packed, forget = batch.packed, batch.forget
    routed = {} if batch.routed is None else {'again': batch.routed}
    hidden = forward(theta, frozen, *packed, **routed)
    flat = hidden.reshape(-1, hidden.shape[-1])  # [(R + A) * T, D]
    kept = [getattr(batch, name) for name in KEPT]
    again = flat[forget.where + packed.tokens.size] if routed else None
    at_routed, at_forget, *at_kept = _in_one(
        lambda states: unembed(theta, frozen, states),
        [again, *(flat[t.where] if t else None for t in (forget, *kept))])
    references = _in_one(
        lambda states: unembed(None, base, states),
        [t.reference if t else None for t in kept])

    def kl(targets, logits, reference):
      """The mean over tokens, and what of it enters the loss."""
      if targets is None:
        return jnp.zeros((), jnp.float32), 0.0
      value = losses.token_kl(reference, logits)
      mean = losses.weighted_mean(value, targets.weight)
      if not options.kl_square_weight:
        return mean, mean
      square = losses.weighted_mean(value * value, targets.weight)
      return mean, mean + options.kl_square_weight * square

    forget_loss, forget_nll = forget_term(at_forget, base, batch)
    routed_loss, routed_nll = routed_term(at_routed, batch)
    forget_loss += options.routed_weight * routed_loss
    kls, kept_losses = zip(*map(kl, kept, at_kept, references))
    retain_kl, text_kl, swapped_kl, _ = kls
    retain_loss, text_loss, swapped_loss, prompt_loss = kept_losses
    retain_nll = losses.weighted_mean(
        losses.token_nll(at_kept[0], batch.retain.labels),
        batch.retain.weight)
    total = (
        options.forget_weight * forget_loss
        + options.kl_weight * (
            retain_loss + options.text_weight * text_loss
            + options.swapped_weight * swapped_loss
            + options.prompt_weight * prompt_loss)
        + options.nll_weight * retain_nll)
    return total, Metrics(
        total, forget_loss, forget_nll, retain_kl, retain_nll, text_kl,
        swapped_kl, routed_nll)

  return loss


def _in_one(
    fn: Callable[[types.Array], types.Array],
    states: Sequence[types.Array | None]) -> list[types.Array | None]:
  """Applies `fn` to all [P, D] in one call: it reads the embedding once."""
  real = [s for s in states if s is not None]
  ends = np.cumsum([s.shape[0] for s in real])[:-1]
  found = iter(jnp.split(fn(jnp.concatenate(real)), ends))
  return [None if s is None else next(found) for s in states]


def _sequence_nll(logits: types.Array, targets: Targets) -> types.Array:
  """Sequence NLL [B]: summed over each sequence's labels."""
  nll = losses.token_nll(logits, targets.labels)
  return _sequence_sum(nll * targets.weight, targets)


def _sequence_sum(values: types.Array, targets: Targets) -> types.Array:
  """Sums values [P] over each sequence's positions, to [B]."""
  zeros = jnp.zeros(targets.first.shape, values.dtype)
  return zeros.at[targets.sequence].add(values)
