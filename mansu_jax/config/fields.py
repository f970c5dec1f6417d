"""Defines and checks the fields of the configurations.

`field` makes a dataclass field whose metadata holds its help text, its choices,
its largest value and the modes that read it. `config.flags` makes the command
line from this metadata, and `config.mode_checks` refuses a flag that the mode
of a run does not read.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
import sys
from typing import Any

# Modes that score or change a model with data; `apply` needs only files.
RUN_MODES = ('unlearn', 'audit', 'attribute', 'plan', 'compare', 'tune')
MODES = (*RUN_MODES, 'apply')
# A plan takes the flags of the unlearning run that it plans; comparisons and
# searches those that their runs share.
MODES_OF_CELLS = ('compare', 'tune')
TRAINING_MODES = ('unlearn', 'plan', *MODES_OF_CELLS)
EVALUATION_MODES = ('unlearn', 'audit', 'plan', *MODES_OF_CELLS)

MAX_INTEGER = 10**7  # Where a field names no other maximum.
MAX_DRAWS = 10**5  # Random draws, each of which is measured.
MAX_ROWS = 10**5  # Rows of a batch.
_MAX_FLOAT = 1e9  # float32 holds its square.
# Limits of Linux, less room for the names of files within a workdir.
_NAME_BYTES, _PATH_BYTES = 255, 4095 - 512
_SHOWN = 40  # Characters or digits of a long value that an error shows.


def field(
    default: Any, doc: str, choices: Sequence[str] | None = None, *,
    modes: Sequence[str], maximum: int = MAX_INTEGER) -> Any:
  """A dataclass field with the metadata that its flag needs.

  Args:
    default: Default value; its type is the type of the flag. None, `auto` on
      the command line: the run chooses an integer.
    doc: Help text of the flag.
    choices: Allowed values of a text field; None allows any.
    modes: Values of `--mode` that read the field.
    maximum: Largest absolute value of an integer field.
  """
  return dataclasses.field(default=default, metadata={
      'help': doc, 'choices': choices, 'modes': tuple(modes),
      'maximum': maximum})


def flag_lines(name: str, value: Any) -> list[str]:
  """The lines of a flagfile that set a flag; none for an empty data flag."""
  if isinstance(value, bool):
    return [f'--{"" if value else "no"}{name}']
  if value is None:
    value = 'auto'
  elif isinstance(value, tuple):
    if name.startswith('data_'):
      return [f'--{name}={item}' for item in value]
    value = ','.join(value)
  return [f'--{name}={value}']


def check(condition: bool, message: str) -> None:
  """Raises ValueError with the message unless the condition holds."""
  if not condition:
    raise ValueError(message)


def check_fields(config: Any, stage: str = '') -> None:
  """Checks the choices, the size and the text of every field.

  Args:
    config: A configuration dataclass.
    stage: Prefix of its flags; '' for `RunConfig`.

  Raises:
    ValueError: A value is not among the choices, is out of range, or is text
      that a flagfile or a file name cannot hold.
  """
  for option in dataclasses.fields(config):
    flag, value = f'{stage}_{option.name}'.lstrip('_'), getattr(
        config, option.name)
    choices = option.metadata.get('choices')
    if choices and value not in choices:
      raise ValueError(
          f'--{flag}={value!r} is not known; wanted one of'
          f' {", ".join(choices)}.')
    if isinstance(value, float):
      _check_float(flag, value, option.default)
    elif isinstance(value, int):
      maximum = option.metadata['maximum']
      check(abs(value) <= maximum, f'--{flag}={_short(value)} is out of range;'
            f' wanted at most {maximum:,}.')
    elif isinstance(value, str):
      check_text(flag, value)
    elif isinstance(value, tuple):
      for text in value:
        check_text(flag, text)
        check(bool(text), f'--{flag}= is empty; wanted a name. Give one, or'
              ' leave the flag out.')


def _check_float(flag: str, value: float, default: float) -> None:
  check(math.isfinite(value), f'--{flag}={value} is not finite; wanted a number'
        f' such as {default}, the default.')
  check(abs(value) <= _MAX_FLOAT, f'--{flag}={value} is out of range; wanted at'
        f' most {_MAX_FLOAT:g}.')


def check_text(flag: str, text: str) -> None:
  """Checks that a file name, and a line of a flagfile, can hold a text.

  Args:
    flag: Name of its flag, for the error.
    text: Value of the flag.

  Raises:
    ValueError: The text has outer spaces, line breaks or NUL, begins with ~,
      is not UTF-8, or is too long for a path.
  """
  check(text == text.strip() and not set(text) & set('\0\n\r'),
        f'--{flag}={_short(text)!r} begins or ends with a space, or contains a'
        ' line break or NUL; wanted a name on one line. Correct it.')
  check(not text.startswith('~'), f'--{flag}={_short(text)} begins with ~,'
        ' which your shell did not expand; wanted a path. Write $HOME.')
  try:
    parts = [len(part.encode()) for part in text.split('/')]
  except UnicodeEncodeError as error:
    raise ValueError(
        f'--{flag}={_short(text)!a} is not UTF-8 text in this locale, whose'
        f' encoding is {sys.getfilesystemencoding()}; wanted UTF-8. Set'
        ' PYTHONUTF8=1, or rename the file.') from error
  length = sum(parts) + len(parts) - 1
  check(max(parts) <= _NAME_BYTES and length < _PATH_BYTES,
        f'--{flag}={_short(text)} is too long: the path has {length} bytes and'
        f' its longest name {max(parts)}; wanted at most {_PATH_BYTES - 1} and'
        f' {_NAME_BYTES}. Shorten it.')


def _short(value: int | str) -> str:
  """A value as text, abbreviated if it is long."""
  if isinstance(value, int):
    return str(value) if abs(value) < 10**_SHOWN else '(a long number)'
  return value if len(value) <= 2 * _SHOWN else (
      f'{value[:_SHOWN]}...{value[-_SHOWN:]}')


def check_minimum(config: Any, stage: str, minimum: int, *names: str) -> None:
  """Raises ValueError if one of the named fields is below the minimum."""
  for name in names:
    value = getattr(config, name)
    check(value >= minimum, f'--{stage}_{name}={value} must be at least'
          f' {minimum}.')


def check_share(config: Any, stage: str, *names: str) -> None:
  """Raises ValueError if one of the named fields is outside (0, 1]."""
  for name in names:
    value = getattr(config, name)
    check(0 < value <= 1, f'--{stage}_{name}={value} is outside (0, 1].')
