"""The methods that solve for an edit, by their names in `--method`.

Each module of this package with a `FORM` is one. They take no steps.
"""

from __future__ import annotations

from mansu_jax.runtime import registry
from mansu_jax.unlearn.closed_forms import form

FORMS: dict[str, form.ClosedForm] = registry.find(__name__, 'FORM')
