"""UNDIAL: distils the base with the logit of each answer token lowered.

References:
  Dong et al., UNDIAL, 2024 (arXiv 2402.10052)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn.forget import term


def undial(
    logits: types.Array, base_logits: types.Array, labels: types.Array, *,
    strength: float) -> types.Array:
  """Cross-entropy of each token's logits [P, V] to the lowered ones, [P].

  Unlike in some implementations, prompts and padding take no part.

  Args:
    logits: of the model.
    base_logits: of the base.
    labels: [P] int32.
    strength: by how much the base's logit of the label is lowered.
  """
  lowered = base_logits.at[jnp.arange(labels.size), labels].add(-strength)
  target = jax.nn.softmax(lowered, axis=-1)
  return -jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  return step.mean_over_tokens(undial(
      step.logits, step.base_logits, step.batch.forget.labels,
      strength=options.undial_strength))


TERM = term.ForgetTerm(_loss)
