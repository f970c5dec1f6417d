"""Fields of the configurations, and checks that they share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


def field(default: Any, doc: str, choices: tuple[str, ...] | None = None):
  """A field with its help and, where they are listed, its choices."""
  return dataclasses.field(
      default=default, metadata={'help': doc, 'choices': choices})


def check(condition: bool, message: str) -> None:
  """Raises ValueError with the message unless the condition holds."""
  if not condition:
    raise ValueError(message)


def check_fields(config: Any, stage: str) -> None:
  """Checks every field with listed choices, and that numbers are finite."""
  for option in dataclasses.fields(config):
    choices = option.metadata.get('choices')
    value = getattr(config, option.name)
    if choices and value not in choices:
      raise ValueError(
          f'--{stage}_{option.name}={value!r} is not known; wanted one of'
          f' {", ".join(choices)}.')
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(
          f'--{stage}_{option.name}={value} is not finite; wanted a number, for'
          f' example {option.default}, the default.')


def check_least(config: Any, stage: str, least: int, *names: str) -> None:
  """Checks that fields are numbers of at least `least`."""
  for name in names:
    value = getattr(config, name)
    check(value >= least, f'--{stage}_{name}={value} must be at least'
          f' {least}.')
