"""Writes files atomically, by a temporary name and a rename.

A file that exists is therefore complete. The functions that write are
collective: every process calls them, and the primary one writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from mansu_jax.runtime import messages
from mansu_jax.runtime import processes

UNFINISHED = '.orbax-checkpoint-tmp'  # In the name of a file that Orbax writes.


def distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """An `object_pairs_hook` of `json.loads` that refuses a name given twice."""
  found = {}
  for name, value in pairs:
    if name in found:
      raise ValueError(f'two entries of the name {messages.shorten(name)}')
    found[name] = value
  return found


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file in UTF-8."""
  _write(path, lambda temporary: temporary.write_text(text, encoding='utf-8'))


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes named arrays to a compressed .npz file, without pickles."""
  def save(temporary: pathlib.Path) -> None:
    with open(temporary, 'wb') as file:
      np.savez_compressed(file, allow_pickle=False, **arrays)

  _write(path, save)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON.

  Raises:
    ValueError: The value contains NaN or infinity.
  """
  write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def write_jsonl(path: pathlib.Path, records: Iterable[Any]) -> None:
  """Writes one JSON object a line."""
  write_text(path, ''.join(
      json.dumps(record, ensure_ascii=False) + '\n' for record in records))


def _write(
    path: pathlib.Path, save: Callable[[pathlib.Path], Any]) -> None:
  def write():
    with replacing(path) as temporary:
      save(temporary)

  processes.broadcast_from_primary(write)


def share(path: pathlib.Path) -> None:
  """Gives a file its folder's read permissions; safetensors sets 0600."""
  path.chmod(path.parent.stat().st_mode & 0o666)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path, which replaces `path` unless something fails.

  Not collective: for code that runs on one process.
  """
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
