"""The forget losses, by their names in `--unlearn_loss`.

Each module of this package with a `TERM` is one.
"""

from __future__ import annotations

import importlib
import pkgutil

from mansu_jax.unlearn.forget import term


def _find() -> dict[str, term.ForgetTerm]:
  modules = {found.name: importlib.import_module(f'{__name__}.{found.name}')
             for found in pkgutil.iter_modules(__path__)}
  return {name: module.TERM for name, module in modules.items()
          if hasattr(module, 'TERM')}


TERMS = _find()


def needs(loss: str) -> term.Needs:
  """What a loss of `--unlearn_loss` reads of other facts."""
  return term.Needs.NOTHING if loss == 'none' else TERMS[loss].needs


def reads_states(loss: str) -> bool:
  """Whether a loss of `--unlearn_loss` reads a layer's residual stream."""
  return loss != 'none' and TERMS[loss].reads_states
