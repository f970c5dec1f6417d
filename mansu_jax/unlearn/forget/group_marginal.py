"""Imitates the base's average answer over facts that are confused."""

from __future__ import annotations

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn import losses
from mansu_jax.unlearn.forget import term


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  del options
  return losses.distribution_kl(
      step.batch.group_marginal, step.at_prompt_end).mean()


TERM = term.ForgetTerm(_loss, needs=term.Needs.GROUP_MARGINAL)
