"""Versions and devices, on which the last bits of a result depend."""

from __future__ import annotations

import platform
from typing import Any

import jax

import mansu_jax


def here() -> dict[str, Any]:
  """Those of this run, JSON-able; all processes' devices."""
  return {
      'mansu_jax': mansu_jax.__version__, 'jax': jax.__version__,
      'python': platform.python_version(), 'platform': platform.platform(),
      'backend': jax.default_backend(), 'processes': jax.process_count(),
      'devices': [d.device_kind for d in jax.devices()]}


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
  """What differs between two, in words; empty where nothing does."""
  return '; '.join(
      f'{key} {_short(old.get(key))} there, {_short(new.get(key))} here'
      for key in new if old.get(key) != new[key])


def _short(value: Any) -> str:
  """Devices of one kind as their number."""
  if not isinstance(value, list):
    return str(value)
  return ', '.join(
      f'{value.count(kind)} x {kind}' for kind in dict.fromkeys(value))
