"""The forget losses, by their names in `--unlearn_loss`.

Each module of this package with a `TERM` is one.
"""

from __future__ import annotations

from mansu_jax.runtime import registry
from mansu_jax.unlearn.forget import term

TERMS: dict[str, term.ForgetTerm] = registry.find(__name__, 'TERM')


def needs(loss: str) -> term.Needs:
  """What a loss of `--unlearn_loss` reads of other facts."""
  return term.Needs.NOTHING if loss == 'none' else TERMS[loss].needs


def reads_states(loss: str) -> bool:
  """Whether a loss of `--unlearn_loss` reads a layer's residual stream."""
  return loss != 'none' and TERMS[loss].reads_states
