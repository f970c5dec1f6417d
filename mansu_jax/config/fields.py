"""Fields of the configurations, and checks that they share."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

MOST = 10**7  # Of a whole number, where its field names no other.
MOST_DRAWS = 10**5  # Of what is drawn at random, and measured, each time.
MOST_ROWS = 10**5  # Of a batch.
_LARGEST = 1e9  # Of other numbers; float32 holds the square.
# Linux' limits, less what lies in a workdir.
_NAME_BYTES, _PATH_BYTES = 255, 4095 - 512
_SHOWN = 40  # Characters of a value that is too long.


def field(default: Any, doc: str, choices: tuple[str, ...] | None = None,
          most: int = MOST):
  """A field with its help, its choices where listed, its largest number."""
  return dataclasses.field(default=default, metadata={
      'help': doc, 'choices': choices, 'most': most})


def check(condition: bool, message: str) -> None:
  """Raises ValueError with the message unless the condition holds."""
  if not condition:
    raise ValueError(message)


def check_fields(config: Any, stage: str = '') -> None:
  """Checks listed choices, sizes of numbers, and text, of every field."""
  for option in dataclasses.fields(config):
    choices = option.metadata.get('choices')
    flag, value = f'{stage}_{option.name}'.lstrip('_'), getattr(
        config, option.name)
    if choices and value not in choices:
      raise ValueError(
          f'--{flag}={value!r} is not known; wanted one of'
          f' {", ".join(choices)}.')
    if isinstance(value, float):
      _check_float(flag, value, option.default)
    elif isinstance(value, int):
      most = option.metadata['most']
      check(abs(value) <= most, f'--{flag}={_short(value)} is out of range;'
            f' wanted {most:,} at most.')
    for text in (value,) if isinstance(value, str) else (
        value if isinstance(value, tuple) else ()):
      check_text(flag, text)
      check(isinstance(value, str) or text, f'--{flag}= is empty; wanted a name.'
            ' Fill it in, or leave the flag out.')


def _check_float(flag: str, value: float, default: float) -> None:
  check(math.isfinite(value), f'--{flag}={value} is not finite; wanted a number,'
        f' for example {default}, the default.')
  check(abs(value) <= _LARGEST, f'--{flag}={value} is out of range; wanted'
        f' {_LARGEST:g} at most.')


def check_text(flag: str, text: str) -> None:
  """Raises ValueError on what is no file's name, or `flags.txt` cannot hold."""
  check(text == text.strip() and not set(text) & set('\0\n\r'),
        f'--{flag}={_short(text)!r} begins or ends with a space, or holds a line'
        ' break or NUL; wanted a name on one line. Correct it.')
  check(not text.startswith('~'), f'--{flag}={_short(text)} begins with ~, which'
        ' your shell has not replaced; wanted a path. Write $HOME.')
  try:
    parts = [len(part.encode()) for part in text.split('/')]
  except UnicodeEncodeError as error:
    raise ValueError(
        f'--{flag}={_short(text)!a} is not UTF-8 text in this locale, whose'
        f' encoding is {sys.getfilesystemencoding()}; wanted UTF-8. Set'
        ' PYTHONUTF8=1, or rename the file.') from error
  check(max(parts) <= _NAME_BYTES and sum(parts) + len(parts) <= _PATH_BYTES,
        f'--{flag}={_short(text)} is too long: {sum(parts) + len(parts) - 1}'
        f' bytes, {max(parts)} in one name; wanted {_PATH_BYTES} at most, and'
        f' {_NAME_BYTES} in a name. Shorten it.')


def _short(value: int | str) -> str:
  """A value of which little is shown where it is long."""
  if isinstance(value, int):
    return str(value) if abs(value) < 10**_SHOWN else '(a long number)'
  return value if len(value) <= 2 * _SHOWN else (
      f'{value[:_SHOWN]}...{value[-_SHOWN:]}')


def check_least(config: Any, stage: str, least: int, *names: str) -> None:
  """Checks that fields are numbers of at least `least`."""
  for name in names:
    value = getattr(config, name)
    check(value >= least, f'--{stage}_{name}={value} must be at least'
          f' {least}.')
