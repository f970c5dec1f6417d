"""Imitates the base's answer for another fact."""

from __future__ import annotations

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn import losses
from mansu_jax.unlearn.forget import term


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  del options
  return step.mean_over_tokens(
      losses.token_kl(step.base_logits, step.logits))


TERM = term.ForgetTerm(_loss, needs=term.Needs.OTHER_ANSWERS)
