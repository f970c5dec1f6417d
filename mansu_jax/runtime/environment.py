"""Versions and devices, on which the last bits of a result depend."""

from __future__ import annotations

import pathlib
import platform
import re
from typing import Any

import jax
import jaxlib

import mansu_jax

_OF_NO_BIT = ('python', 'platform')  # What results do not depend on.


def here() -> dict[str, Any]:
  """Those of this run, JSON-able; all processes' devices."""
  return {
      'mansu_jax': mansu_jax.__version__, 'jax': jax.__version__,
      'jaxlib': jaxlib.__version__, 'python': platform.python_version(),
      'platform': platform.platform(), 'processor': _processor(),
      'backend': jax.default_backend(), 'processes': jax.process_count(),
      'devices': [d.device_kind for d in jax.devices()],
      'mesh': dict(jax.sharding.get_abstract_mesh().shape)}


def _processor() -> str:
  """The name of the host's."""
  found = None
  if (path := pathlib.Path('/proc/cpuinfo')).exists():
    found = re.search(r'^model name\s*: (.*)', path.read_text('utf-8'), re.M)
  return found[1] if found else platform.processor()


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
  """What a result's last bits depend on and is not alike; or ''."""
  return '; '.join(
      f'{key} {_short(old.get(key))} there, {_short(new[key])} here'
      for key in new if key not in _OF_NO_BIT and old.get(key) != new[key])


def _short(value: Any) -> str:
  """Devices of one kind as their number."""
  if isinstance(value, dict):
    return ' x '.join(f'{name} {size}' for name, size in value.items())
  if not isinstance(value, list):
    return str(value)
  return ', '.join(
      f'{value.count(kind)} x {kind}' for kind in dict.fromkeys(value))
