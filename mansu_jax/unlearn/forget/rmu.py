"""RMU: the model's states at the answers are steered to a random direction.

References:
  Li et al., The WMDP Benchmark, 2024 (arXiv 2403.03218)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn.forget import term


def rmu(states: types.Array, coefficient: float) -> types.Array:
  """Mean over the width of (state - coefficient u)^2 at each position.

  u is a unit vector whose entries were drawn from [0, 1), the same for all
  positions and steps.

  Args:
    states: [P, D] of a layer.
    coefficient: length of the vector that replaces them.

  Returns:
    [P] float32.
  """
  states = states.astype(jnp.float32)
  direction = jax.random.uniform(jax.random.key(0), states.shape[-1:])
  direction /= jnp.linalg.norm(direction)
  return jnp.square(states - coefficient * direction[None]).mean(-1)


def _loss(options: run_config.UnlearnConfig, step: term.Step) -> types.Array:
  return step.mean_over_tokens(rmu(step.states, options.rmu_coefficient))


TERM = term.ForgetTerm(_loss, reads_states=True)
