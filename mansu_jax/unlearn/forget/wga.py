"""Weighted gradient ascent: likely tokens are forgotten, unlikely ones left.

References:
  Wang et al., Rethinking LLM Unlearning Objectives, 2025 (arXiv 2502.19301)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn.forget import term


def wga(nll: types.Array, *, power: float) -> types.Array:
  """-p^power nll of each token, where no gradient reaches the weight p^power.

  Args:
    nll: of each token, -log p.
    power: 0 is gradient ascent.
  """
  return -jax.lax.stop_gradient(jnp.exp(-power * nll)) * nll


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  return step.mean_over_tokens(wga(step.token_nll, power=options.wga_power))


TERM = term.ForgetTerm(_loss)
