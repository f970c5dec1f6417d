"""Finds what the modules of a package define, so that no list names them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def find(package: str, attribute: str) -> dict[str, Any]:
  """`{module: value}` of the modules of a package that have an attribute.

  Args:
    package: `__name__` of the package, which may be half imported.
    attribute: name of the attribute.
  """
  modules = {
      found.name: importlib.import_module(f'{package}.{found.name}')
      for found in pkgutil.iter_modules(
          importlib.import_module(package).__path__)}
  return {name: getattr(module, attribute) for name, module in modules.items()
          if hasattr(module, attribute)}
