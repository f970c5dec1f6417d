"""Describes versions and devices, on which the last bits of a result depend.

`describe` gives the entry of the record; `differences` compares two of them.
"""

from __future__ import annotations

import pathlib
import platform
import re
import subprocess
from typing import Any

import jax
import jaxlib

import mansu_jax

_IRRELEVANT = ('python', 'platform')  # Results do not depend on these.


def describe() -> dict[str, Any]:
  """Versions, processor and devices of this run, JSON-able.

  Includes the devices of all processes. `commit` is that of the package's
  checkout, with '+changes' if tracked files differ from it; None for an
  installed package or without git.
  """
  return {
      'mansu_jax': mansu_jax.__version__, 'commit': commit(),
      'jax': jax.__version__, 'jaxlib': jaxlib.__version__,
      'python': platform.python_version(), 'platform': platform.platform(),
      'processor': _processor(),
      'backend': jax.default_backend(), 'processes': jax.process_count(),
      'devices': [d.device_kind for d in jax.devices()],
      'mesh': dict(jax.sharding.get_abstract_mesh().shape)}


def commit() -> str | None:
  """That of the package's checkout, as `describe` gives it."""
  root = pathlib.Path(mansu_jax.__file__).parents[1]
  if not (root / '.git').exists():
    return None
  try:
    commit, changes = (subprocess.run(
        ['git', '-C', root, *command], capture_output=True, text=True,
        check=True).stdout.strip() for command in (
            ('rev-parse', 'HEAD'), ('status', '--porcelain', '-uno')))
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit + ('+changes' if changes else '')


def _processor() -> str:
  """Name of the host's processor."""
  found = None
  if (path := pathlib.Path('/proc/cpuinfo')).exists():
    found = re.search(r'^model name\s*: (.*)', path.read_text('utf-8'), re.M)
  return found[1] if found else platform.processor()


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
  """Differences of two environments that can change a result's last bits.

  Args:
    old: From `describe`.
    new: From `describe`.

  Returns:
    A text such as 'jax 0.9 then, 0.10 now'; '' without differences.
  """
  return '; '.join(
      f'{key} {_short(old.get(key))} then, {_short(new[key])} now'
      for key in new if key not in _IRRELEVANT and old.get(key) != new[key])


def _short(value: Any) -> str:
  """A value as text; devices of the same kind become their number."""
  if isinstance(value, dict):
    return ' x '.join(f'{name} {size}' for name, size in value.items())
  if not isinstance(value, list):
    return str(value)
  return ', '.join(
      f'{value.count(kind)} x {kind}' for kind in dict.fromkeys(value))
