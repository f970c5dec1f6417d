"""The unlikelihood of the answer."""

from __future__ import annotations

import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.unlearn.forget import term


def bounded_nll(nll: types.Array) -> types.Array:
  """-log(1 - p(answer)): falls to 0 as the answer becomes impossible.

  Unlike plain ascent it has a lower bound, and its gradient fades as the
  answer is forgotten (the unlikelihood of the sequence).
  """
  # An offset, not a clip, keeps the gradient of a certain answer.
  return -jnp.log(-jnp.expm1(-(nll + 1e-6)))


TERM = term.ForgetTerm(lambda options, step: bounded_nll(step.nll).mean())
