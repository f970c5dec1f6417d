"""NPO without a reference model, on the mean log-probability.

References:
  Fan et al., Simplicity Prevails, 2024 (arXiv 2410.07163)
"""

from __future__ import annotations

import jax

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn.forget import term


def simnpo(
    nll: types.Array, length: types.Array, *, beta: float,
    margin: float = 0.0) -> types.Array:
  """-(2/beta) log sigma(beta nll / length - margin) of each answer."""
  return -2 / beta * jax.nn.log_sigmoid(beta * nll / length - margin)


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  return simnpo(step.nll, step.length, beta=options.npo_beta).mean()


TERM = term.ForgetTerm(_loss)
