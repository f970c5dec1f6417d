"""DPO: a refusal is preferred to the answer, against the base.

References:
  Rafailov et al., Direct Preference Optimization, 2023 (arXiv 2305.18290)
  Zhang et al., Negative Preference Optimization, 2024 (arXiv 2404.05868), for
  its use in unlearning and the factor 2 / beta
"""

from __future__ import annotations

import jax

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn import step_data
from mansu_jax.unlearn.forget import term


def dpo(
    preferred: types.Array, rejected: types.Array, *, beta: float
) -> types.Array:
  """-(2/beta) log sigma(beta (rejected - preferred)).

  Args:
    preferred: NLL of a refusal, less the base's; nats.
    rejected: the same of the answer.
    beta: inverse temperature.
  """
  return -2 / beta * jax.nn.log_sigmoid(beta * (rejected - preferred))


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  refusals = step.batch.refusals
  base = step_data.sequence_nll(step.base(refusals.reference), refusals)
  return dpo(step.refusal_nll - base, step.nll - step.base_nll,
             beta=options.npo_beta).mean()


TERM = term.ForgetTerm(_loss, needs=term.Needs.REFUSALS)
