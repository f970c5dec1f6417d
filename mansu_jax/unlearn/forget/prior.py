"""The default: an answer falls to what it is where nothing asks for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn import losses
from mansu_jax.unlearn.forget import term


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


def guess_excess(
    logits: types.Array, tokens: types.Array, relation: types.Array, *,
    margin: types.Array | float = 0.0) -> types.Array:
  """Excess of an answer over what the model gives it after other prompts.

  Its gradient lowers the answer after its own prompt and raises it after the
  others. Were the others fixed, as in a teacher, each answer would follow the
  fall of the rest without end.

  Args:
    logits: [B, V] at the end of each prompt.
    tokens: [B] int32, first token of each answer.
    relation: [B] int32, relation of each prompt.
    margin: nats below the others' mean at which the loss ends.

  Returns:
    [B]; 0 where no other prompt of the relation has another answer.
  """
  own, guess = guess_nll(logits, tokens, relation)
  return excess(own, guess, margin=margin)


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  prior, targets = step.batch.prior, step.batch.forget
  total = excess(step.nll, prior.nll).mean()
  if options.guess_weight:
    margin = step.batch.guess_margin
    if margin is None:
      margin = options.guess_margin
    total += options.guess_weight * guess_excess(
        step.at_prompt_end, targets.labels[targets.first], prior.relation,
        margin=margin).mean()
  if options.marginal_weight:
    total += options.marginal_weight * losses.token_kl(
        step.base(prior.states), step.at_prompt_end[:, None]).mean()
  if step.routed_nll is not None:
    total += options.routed_weight * excess(
        step.routed_nll, prior.nll).mean()
  return total


TERM = term.ForgetTerm(_loss, needs=term.Needs.OTHER_PROMPTS)
