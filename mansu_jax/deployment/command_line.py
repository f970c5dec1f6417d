"""Flag parsing and error reporting of the command lines in this package."""

from __future__ import annotations

from collections.abc import Callable
import sys

from absl import flags

USER_ERROR = 2  # Exit status.


def parse(
    program: str, flag_values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Parses flags; prints an error and exits if absl refuses a flag.

  Args:
    program: Name of the program, for the message.
    flag_values: Defined flags.
    argv: Command line.

  Returns:
    The arguments that are not flags.
  """
  try:
    return flag_values(argv)
  except flags.Error as error:
    message = str(error).removeprefix('ERROR:: ').rstrip('.')
    print(f'{program}: {message}. See --help.', file=sys.stderr)
    sys.exit(USER_ERROR)


def run(program: str, argv: list[str], action: Callable[[], int]) -> int:
  """Runs an action; prints errors of the user or the file system in a line.

  Args:
    program: Name of the program, for the message.
    argv: Arguments that are not flags; none but the program's name is allowed.
    action: Function that returns the exit status.

  Returns:
    The exit status; `USER_ERROR` after an error.
  """
  try:
    if len(argv) > 1:
      raise ValueError(f'Positional arguments {argv[1:]} are not used; write'
                       ' flags as --name=value.')
    return action()
  except ValueError as error:
    print(f'{program}: {error}', file=sys.stderr)
  except OSError as error:  # Missing file, missing permission or full disk.
    path = f'{error.filename}: ' if error.filename else ''
    print(f'{program}: {path}{error.strerror or error}. Check that the file can'
          ' be read or written and that the disk has room.', file=sys.stderr)
  return USER_ERROR
