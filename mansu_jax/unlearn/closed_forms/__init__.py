"""The methods that solve for an edit, by their names in `--method`.

Each module of this package with a `FORM` is one. They take no steps.
"""

from __future__ import annotations

import importlib
import pkgutil

from mansu_jax.unlearn.closed_forms import form


def _find() -> dict[str, form.ClosedForm]:
  modules = {found.name: importlib.import_module(f'{__name__}.{found.name}')
             for found in pkgutil.iter_modules(__path__)}
  return {name: module.FORM for name, module in modules.items()
          if hasattr(module, 'FORM')}


FORMS = _find()
