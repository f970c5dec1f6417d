"""Reads JSONL files strictly; errors name file and line."""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import json
import pathlib
import stat
from typing import Any

SHIPPED = 'shipped:'
_SHIPPED_DIR = pathlib.Path(__file__).parents[1] / 'shipped'
_SUFFIXES = ('', '.jsonl', '.txt')


def resolve(path: str) -> pathlib.Path:
  """Returns the path of a data file.

  Args:
    path: A path, or `shipped:NAME` (with or without suffix) for a file in the
      package.

  Raises:
    ValueError: the file does not exist or is not a regular file.

  Example:
    >>> resolve('shipped:capitals_europe').name
    'capitals_europe.jsonl'
  """
  path = str(path)
  if path.startswith(SHIPPED):
    return _resolve_shipped(path)
  found = pathlib.Path(path)
  problem = _why_no_file(found)
  if problem:
    hint = f' (* works only after {SHIPPED})' if '*' in path else ''
    raise ValueError(
        f'Data file {path!r} {problem}; wanted a readable file{hint}, or'
        f' {SHIPPED}NAME, such as {SHIPPED}capitals_europe.jsonl. Correct the'
        ' path; each flag takes one file.')
  return found


def _why_no_file(path: pathlib.Path) -> str:
  """Says why a path is not a regular file; '' if it is one."""
  try:
    mode = path.stat().st_mode
  except (FileNotFoundError, ValueError):
    return 'does not exist'
  except OSError as error:
    return f'cannot be read ({error.strerror})'
  if stat.S_ISREG(mode):
    return ''
  if stat.S_ISDIR(mode):
    return 'is a folder'
  return ('is a device' if stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
          else 'is a pipe or socket') + (
              ', which cannot be read again when a run resumes')


def shipped_names() -> list[str]:
  """Names of the shipped data files, sorted."""
  if not _SHIPPED_DIR.is_dir():
    return []
  return sorted(
      f.name for f in _SHIPPED_DIR.iterdir() if f.suffix in _SUFFIXES[1:])


def _resolve_shipped(path: str) -> pathlib.Path:
  name, names = path.removeprefix(SHIPPED), shipped_names()
  for suffix in _SUFFIXES:
    if name + suffix in names:
      return _SHIPPED_DIR / (name + suffix)
  raise ValueError(
      f'Shipped file {path!r} does not exist; wanted one of {names}. Correct'
      ' the name, or give a path.')


def sha256(path: str) -> str:
  """Hex SHA-256 of a file's bytes."""
  return hashlib.sha256(resolve(path).read_bytes()).hexdigest()


def read_text(path: str) -> str:
  """Reads a UTF-8 text file.

  Raises:
    ValueError: the file is missing, unreadable or not UTF-8.
  """
  try:
    return resolve(path).read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as e:
    raise ValueError(
        f'{path}: byte {e.start} is not UTF-8; wanted UTF-8 text. Convert the'
        ' file.') from e
  except OSError as e:
    raise ValueError(
        f'{path}: cannot be read ({e.strerror}); wanted a readable file. Check'
        ' its permissions.'
    ) from e


def read_records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields `('file:line', object)` for each line; skips blank lines.

  Args:
    path: A file, or `shipped:NAME`.

  Raises:
    ValueError: a line is not a JSON object, or the file has no line.

  Example:
    >>> where, record = next(read_records('shipped:capitals_europe'))
    >>> where, record['answer']
    ('shipped:capitals_europe:1', 'Paris')
  """
  empty = True
  for number, line in enumerate(read_text(path).split('\n'), start=1):
    if not line.strip():
      continue
    empty = False
    where = f'{path}:{number}'
    yield where, _parse(where, line)
  if empty:
    raise ValueError(
        f'{path}: is empty; wanted at least one line with a JSON object. Fill'
        ' the file or remove its flag.')


def _parse(where: str, line: str) -> dict[str, Any]:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as e:  # ValueError: also a huge number.
    deep = isinstance(e, RecursionError)
    reason = 'nested too deeply' if deep else getattr(e, 'msg', str(e))
    raise ValueError(
        f'{where}: is not JSON ({reason} at column {getattr(e, "colno", 1)});'
        f' got {_short(line)}; wanted one JSON object per line. Correct the'
        ' line.') from e
  if not isinstance(record, dict):
    raise ValueError(
        f'{where}: contains a {type(record).__name__}, {_short(line)}; wanted a'
        ' JSON object with named fields. Correct the line.')
  try:
    json.dumps(record, ensure_ascii=False).encode()
  except UnicodeEncodeError as e:
    raise ValueError(
        f'{where}: contains half a surrogate pair, {e.object[e.start]!a};'
        ' wanted Unicode text. Write the character itself, or both halves of'
        ' the pair.') from e
  return record


def _short(value: object, limit: int = 60) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return repr(text if len(text) <= limit else text[:limit] + '...')


def check_type(where: str, field: str, value: Any, want: type, name: str):
  """Returns `value`; ValueError if it is not of type `want`."""
  wrong_bool = isinstance(value, bool) and want is not bool
  if not isinstance(value, want) or wrong_bool:
    raise ValueError(
        f'{where}: field {field!r} is {_short(value)}, a'
        f' {type(value).__name__}; wanted {name}. Correct the line.')
  return value


def take(where: str, record: dict[str, Any], field: str, want: type,
         name: str) -> Any:
  """Returns `record[field]`; ValueError if missing or of another type."""
  if field not in record:
    raise ValueError(
        f'{where}: lacks the field {field!r}; got the fields'
        f' {sorted(record)}. Add {field!r}: {name}.')
  return check_type(where, field, record[field], want, name)


def take_string(where: str, record: dict[str, Any], field: str) -> str:
  """Returns a string field; ValueError if it is missing or blank."""
  value = take(where, record, field, str, 'a string')
  if not value.strip():
    raise ValueError(
        f'{where}: field {field!r} is blank ({value!r}); wanted text. Fill it'
        ' in.')
  return value
