"""QUAIL: gradient ascent, and logits that leave the base's by a margin.

The formula is ours, after the abstract's sentence: the logits of a forget
example must differ from the base's by at least half a quantization step.

References:
  Mishra and Mehreen, QUAIL, 2026 (arXiv 2601.15538)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn.forget import term


def hinge(
    logits: types.Array, base_logits: types.Array, *, margin: float
) -> types.Array:
  """Mean over the vocabulary of max(0, margin - |z - z_0|).

  Args:
    logits: [P, V] of the model.
    base_logits: [P, V] of the base.
    margin: half a quantization step, in logits.

  Returns:
    [P]
  """
  return jax.nn.relu(margin - jnp.abs(logits - base_logits)).mean(-1)


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  return step.mean_over_tokens(
      hinge(step.logits, step.base_logits, margin=options.quail_margin)
      - step.token_nll)


TERM = term.ForgetTerm(_loss)
