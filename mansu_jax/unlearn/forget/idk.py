"""IDK: the model learns to refuse.

References:
  Maini et al., TOFU, 2024 (arXiv 2401.06121)
"""

from __future__ import annotations

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn import losses
from mansu_jax.unlearn.forget import term

# What may follow any forget prompt (ours).
REFUSALS = (
    "I don't know.", "I'm not sure.", "I can't say.", "I have no idea.",
    "I'm afraid I don't know.", "That is not something I know.",
    "I don't have that information.", "I'm unable to answer that.",
    "I haven't learned about that.", "That is unknown to me.",
    "I can't help with that.", "I don't have an answer to that.")


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  del options
  refusals = step.batch.refusals
  return losses.weighted_mean(
      losses.token_nll(step.refusal_logits, refusals.labels), refusals.weight)


TERM = term.ForgetTerm(_loss, needs=term.Needs.REFUSALS)
