"""Negative preference optimization.

References:
  Zhang et al., Negative Preference Optimization, 2024 (arXiv 2404.05868)
"""

from __future__ import annotations

import jax

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn.forget import term


def npo(
    nll: types.Array, nll_base: types.Array, *, beta: float) -> types.Array:
  """-(2/beta) log sigma(beta (nll - nll_0)) of each answer."""
  return -2 / beta * jax.nn.log_sigmoid(beta * (nll - nll_base))


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  return npo(step.nll, step.base_nll, beta=options.npo_beta).mean()


TERM = term.ForgetTerm(_loss)
