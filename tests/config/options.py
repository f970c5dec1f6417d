"""Changes single options of a configuration, for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from mansu_jax.config import run as config_lib


_VALUES = {
    'grid': ('edit_floor=none|hold',), 'rungs': ('3',),  # To tune.
    'closed_form_layers': ('3', '5')}


def other_value(field: dataclasses.Field) -> Any:
  """A valid value that is not the default."""
  default, choices = field.default, field.metadata.get('choices')
  if field.name in _VALUES:
    return _VALUES[field.name]
  if choices:
    return next(c for c in choices if c != default)
  if default is None:
    return 3
  if isinstance(default, bool):
    return not default
  if isinstance(default, float):
    return 0.12345678901234567
  if isinstance(default, int):
    return default + 4
  return ('x y/b=1.jsonl', 'c') if isinstance(default, tuple) else 'x y=1'


def replace(
    config: config_lib.RunConfig, flag: str, value: Any
) -> config_lib.RunConfig:
  """A copy of the configuration in which one flag has another value."""
  for stage in config_lib.stages():
    if flag.startswith(f'{stage}_'):
      part = dataclasses.replace(
          getattr(config, stage), **{flag.removeprefix(f'{stage}_'): value})
      return dataclasses.replace(config, **{stage: part})
  return dataclasses.replace(config, **{flag: value})
