"""SatImp: gradient ascent that is weighed by saturation and importance.

References:
  Yang et al., Exploring Criteria of Loss Reweighting, 2025 (arXiv 2505.11953)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn.forget import term
from mansu_jax.unlearn.forget import wga


def satimp(
    nll: types.Array, *, saturation: float, importance: float) -> types.Array:
  """-p^saturation (1 - p)^importance nll of each token.

  No gradient reaches the weight.

  Args:
    nll: of each token, -log p.
    saturation: how much more a token counts that is not forgotten yet.
    importance: how much less a token counts that is certain in any case.
  """
  rest = jnp.maximum(-jnp.expm1(-nll), 0)  # Rounding can make nll negative.
  return jax.lax.stop_gradient(rest**importance) * wga.wga(
      nll, power=saturation)


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  return step.mean_over_tokens(satimp(
      step.token_nll, saturation=options.satimp_saturation,
      importance=options.satimp_importance))


TERM = term.ForgetTerm(_loss)
