"""Gradient ascent, the forget loss of GradDiff; a baseline only.

References:
  Maini et al., TOFU, 2024 (arXiv 2401.06121)
"""

from __future__ import annotations

from mansu_jax import types
from mansu_jax.unlearn.forget import term


def ascent(nll: types.Array) -> types.Array:
  """-nll, unbounded below."""
  return -nll


TERM = term.ForgetTerm(lambda options, step: ascent(step.nll).mean())
