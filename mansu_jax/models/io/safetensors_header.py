"""What is wrong with the header of a `.safetensors` file, by name.

The package `safetensors` checks types, sizes and offsets. It accepts two
tensors of one name, of which it keeps the last; and some of its messages lack
the tensor or the number. Format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
import pathlib
import struct
from typing import Any

from mansu_jax.runtime import files
from mansu_jax.runtime import messages

_LENGTH = struct.Struct('<Q')
_MOST = 2**25  # Bytes of a header: 250,000 tensors.
_LONGEST_NAME, _MOST_AXES = 256, 16
_METADATA = '__metadata__'
# Bytes of an element; the package knows more types, which are refused later.
_WIDTHS = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2, 'I64': 8, 'I32': 4,
           'I16': 2, 'I8': 1, 'U64': 8, 'U32': 4, 'U16': 2, 'U8': 1, 'BOOL': 1}


def check(file: pathlib.Path) -> None:
  """Checks the header: its length before it is read, then names and offsets.

  Other faults are left to the package.

  Raises:
    ValueError: the header does not fit into the file or is over 32 MiB, two
      tensors share a name or bytes, a name is long or unprintable, a tensor has
      other bytes than its shape needs or ends beyond the file, or bytes belong
      to no tensor. The message does not name the file.
  """
  size = file.stat().st_size
  with open(file, 'rb') as opened:
    first = opened.read(_LENGTH.size)
    if len(first) < _LENGTH.size:
      raise ValueError(
          f'the length of the header needs {_LENGTH.size} bytes, but the file'
          f' has {size}')
    (length,) = _LENGTH.unpack(first)
    left = size - _LENGTH.size
    if length > left:
      raise ValueError(f'a header of {length} bytes, but {left} are left')
    if length > _MOST:
      raise ValueError(f'a header of {length} bytes, wanted at most {_MOST}')
    text = opened.read(length)
  try:
    fields = json.loads(text, object_pairs_hook=files.distinct)
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
    return
  if isinstance(fields, dict):
    fields.pop(_METADATA, None)
    _check_tensors(fields, left - length)


def _check_tensors(fields: Mapping[str, Any], size: int) -> None:
  """Checks the entries of a header before `size` bytes of data."""
  found = {}
  for name, entry in fields.items():
    if len(name) > _LONGEST_NAME or not name.isprintable():
      raise ValueError(
          f'a tensor of the name {messages.shorten(name)}, wanted at most'
          f' {_LONGEST_NAME} printable letters')
    bounds = _bounds(name, entry)
    if bounds is None:
      return
    found[name] = bounds
  _check_offsets(found, size)


def _bounds(name: str, entry: Any) -> tuple[int, int] | None:
  """First byte and end of a tensor; None if the entry has other types."""
  if not isinstance(entry, dict):
    return None
  shape, offsets = entry.get('shape'), entry.get('data_offsets')
  whole = lambda values: (
      isinstance(values, list) and len(values) <= _MOST_AXES and all(
          type(x) is int and 0 <= x < 2**64 for x in values))
  if not (whole(shape) and whole(offsets) and len(offsets) == 2):
    return None
  start, end = offsets
  width = _WIDTHS.get(str(entry.get('dtype')))
  if width is not None and math.prod(shape) * width != end - start:
    raise ValueError(
        f'the tensor {name!r} of the shape {messages.shorten(shape)} in'
        f' {entry["dtype"]} needs {messages.shorten(math.prod(shape) * width)}'
        f' bytes, but has {end - start}')
  return start, end


def _check_offsets(
    bounds: Mapping[str, tuple[int, int]], size: int) -> None:
  """Raises ValueError unless tensors follow each other up to the end."""
  last, before = 0, None
  for name, (start, end) in sorted(bounds.items(), key=lambda item: item[1]):
    if start < last:
      raise ValueError(f'the tensors {before!r} and {name!r} overlap')
    if start > last:
      raise ValueError(
          f'{start - last} bytes before the tensor {name!r}'
          ' belong to no tensor')
    last, before = end, name
  if last != size:
    raise ValueError(
        f'the tensors have {last} bytes, but {size} are left'
        ' after the header')
