"""Reads the header of a `.gguf` file: metadata and tensor offsets.

The reader compares each count, length and offset with the remaining bytes
before it loops or allocates. The reader of the `gguf` package makes an array
per element: 22 s and 330 MB for a list of a million bytes. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import array
from collections.abc import Sequence
import dataclasses
import math
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np

from mansu_jax.runtime import messages

MAGIC = b'GGUF'
_VERSIONS = (2, 3)
# Format letters of the scalar types in struct and array; a bool is one byte.
_SCALARS = {
    gguf.GGUFValueType.UINT8: 'B', gguf.GGUFValueType.INT8: 'b',
    gguf.GGUFValueType.UINT16: 'H', gguf.GGUFValueType.INT16: 'h',
    gguf.GGUFValueType.UINT32: 'I', gguf.GGUFValueType.INT32: 'i',
    gguf.GGUFValueType.UINT64: 'Q', gguf.GGUFValueType.INT64: 'q',
    gguf.GGUFValueType.FLOAT32: 'f', gguf.GGUFValueType.FLOAT64: 'd',
    gguf.GGUFValueType.BOOL: '?'}
_STRING, _ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
# Least bytes of a string, an array, a key with its value, and a tensor.
_LEAST_STRING, _LEAST_ARRAY, _LEAST_PAIR, _LEAST_TENSOR = 8, 12, 13, 32
# Limits of the format, except for the depth, which it does not limit.
_LONGEST_KEY, _LONGEST_NAME, _MOST_AXES = 2**16 - 1, 64, 4
_DEEPEST = 4  # Nesting of arrays.
_ALIGNMENT = 'general.alignment'


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a file, without its values.

  Attributes:
    name: Name in the file.
    kind: Storage format.
    shape: Shape in torch's order, rows first.
    start: Offset of the first byte in the file.
    size: Number of bytes.
  """

  name: str
  kind: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  start: int
  size: int

  @property
  def bytes_shape(self) -> tuple[int, ...]:
    """Shape of the stored bytes: `shape` with bytes per row as last axis."""
    rows = self.shape[:-1]
    return (*rows, self.size // math.prod(rows))


class Header(NamedTuple):
  """The header of a file.

  Attributes:
    metadata: Key -> int, float, bool, str, or a sequence (an `array.array` of
      numbers, a list of strings, or a list of sequences).
    tensors: Tensors in file order.
  """

  metadata: dict[str, Any]
  tensors: tuple[Tensor, ...]


def read(data: np.ndarray) -> Header:
  """Parses a header and checks that the file contains all tensors.

  Args:
    data: [bytes] uint8, the whole file.

  Raises:
    ValueError: the file is damaged, truncated, big-endian or of another version
      of the format. The message does not name the file.
  """
  cursor = _Cursor(data)
  cursor.take(len(MAGIC), 'magic')
  _check_version(cursor.number('I', 'version'))
  num_tensors = cursor.number('Q', 'number of tensors')
  num_pairs = cursor.number('Q', 'number of keys')
  cursor.check_count(num_tensors, _LEAST_TENSOR, 'tensors')
  metadata = {}
  cursor.check_count(num_pairs, _LEAST_PAIR, 'keys')
  for _ in range(num_pairs):
    key = cursor.name(_LONGEST_KEY, 'key')
    if key in metadata:
      raise ValueError(f'two values of the key {messages.shorten(key)}')
    what = f'value of {messages.shorten(key)}'
    metadata[key] = _value(cursor, cursor.number('I', f'type of {what}'), what)
  return Header(metadata, _tensors(cursor, num_tensors, _alignment(metadata)))


def _check_version(version: int) -> None:
  if version and version % 2**16 == 0:
    raise ValueError(
        'it is big-endian, wanted little-endian: convert it with the gguf'
        ' package\'s `gguf-convert-endian FILE little`')
  if version not in _VERSIONS:
    raise ValueError(f'GGUF version {version}, wanted one of {_VERSIONS}')


class _Cursor:
  """A read position in the file; refuses to read past the end."""

  def __init__(self, data: np.ndarray):
    self._data, self.at, self.size = memoryview(data), 0, len(data)

  def take(self, size: int, what: str) -> memoryview:
    """Reads the next bytes."""
    start, self.at = self.at, self.at + size
    if self.at > self.size:
      raise ValueError(
          f'{what} needs {size} bytes at byte {start}, but'
          f' {self.size - start} are left')
    return self._data[start:self.at]

  def check_count(self, count: int, least: int, what: str) -> None:
    """Raises ValueError unless `count` elements of `least` bytes fit."""
    left = self.size - self.at
    if count * least > left:
      raise ValueError(
          f'{count} {what} at byte {self.at}, but {left} bytes are left')

  def number(self, letter: str, what: str) -> Any:
    """Reads the next number of struct type `letter`."""
    (value,) = struct.unpack(
        f'<{letter}', self.take(struct.calcsize(f'<{letter}'), what))
    return value

  def numbers(self, letter: str, count: int, what: str) -> array.array:
    """Reads the next `count` numbers; bools as bytes."""
    out = array.array(letter.replace('?', 'B'))
    out.frombytes(self.take(count * out.itemsize, what))
    return out

  def text(self, what: str) -> str:
    """Reads the next string."""
    size = self.number('Q', f'length of {what}')
    try:
      return str(self.take(size, what), 'utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(f'{what} that is not UTF-8 ({error.reason})') from error

  def name(self, longest: int, what: str) -> str:
    """Reads the next string; refuses long and unprintable names."""
    at = self.at
    text = self.text(what)
    if len(text) > longest or not text.isprintable():
      raise ValueError(
          f'the {what} {messages.shorten(text)} at byte {at}, wanted at most'
          f' {longest} printable letters')
    return text

  def texts(self, count: int, what: str) -> list[str]:
    """Reads the next `count` strings; faster than `text` for each."""
    data, at, end = self._data, self.at, self.size
    length = struct.Struct('<Q').unpack_from
    out = []
    for _ in range(count):
      start = at + 8
      if start > end:
        break
      at = start + length(data, at)[0]
      if at > end:
        break
      try:
        out.append(str(data[start:at], 'utf-8'))
      except UnicodeDecodeError as error:
        raise ValueError(
            f'{what}, string {len(out)}, that is not UTF-8 ({error.reason})'
        ) from error
    if len(out) < count:
      raise ValueError(
          f'{what} has {count} strings, but string {len(out)} goes beyond the'
          ' end of the file')
    self.at = at
    return out


def _value(cursor: _Cursor, kind: int, what: str, depth: int = 0) -> Any:
  """Reads the next value; `kind` is the number of its type."""
  if kind in _SCALARS:
    return cursor.number(_SCALARS[kind], what)
  if kind == _STRING:
    return cursor.text(what)
  if kind != _ARRAY:
    raise ValueError(f'{what} of the unknown type {kind}')
  if depth == _DEEPEST:
    raise ValueError(f'{what} of arrays nested over {_DEEPEST} deep')
  inner = cursor.number('I', f'element type of the {what}')
  count = cursor.number('Q', f'length of the {what}')
  if inner in _SCALARS:
    return cursor.numbers(_SCALARS[inner], count, what)
  if inner == _STRING:
    cursor.check_count(count, _LEAST_STRING, f'strings in the {what}')
    return cursor.texts(count, what)
  if inner != _ARRAY:
    raise ValueError(f'{what} with elements of the unknown type {inner}')
  cursor.check_count(count, _LEAST_ARRAY, f'arrays in the {what}')
  return [_value(cursor, inner, what, depth + 1) for _ in range(count)]


def _alignment(metadata: dict[str, Any]) -> int:
  value = metadata.get(_ALIGNMENT, gguf.GGUF_DEFAULT_ALIGNMENT)
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or value < 1 or value & (value - 1):
    raise ValueError(
        f'{_ALIGNMENT} = {messages.shorten(value)}, wanted a power of two')
  return value


def _tensors(
    cursor: _Cursor, count: int, alignment: int) -> tuple[Tensor, ...]:
  """Reads the next `count` tensors."""
  cursor.check_count(count, _LEAST_TENSOR, 'tensors')
  found = {}
  for _ in range(count):
    tensor = _tensor(cursor, alignment)
    if tensor.name in found:
      raise ValueError(
          f'two tensors of the name {messages.shorten(tensor.name)}')
    found[tensor.name] = tensor
  first = -(-cursor.at // alignment) * alignment  # Offsets count from here.
  out = [dataclasses.replace(t, start=first + t.start) for t in found.values()]
  _check_offsets(out, first, cursor.size)
  return tuple(out)


def _check_offsets(found: Sequence[Tensor], first: int, size: int) -> None:
  """Raises ValueError if tensors overlap or exceed the file."""
  end, before = first, None
  for tensor in sorted(found, key=lambda t: t.start):
    if tensor.start < end:
      raise ValueError(
          f'the tensors {messages.shorten(before.name)} and'
          f' {messages.shorten(tensor.name)} overlap')
    end, before = tensor.start + tensor.size, tensor
  if before is not None and end > size:
    raise ValueError(
        f'the tensor {messages.shorten(before.name)} ends at byte {end}, the'
        f' file at {size}')


def _tensor(cursor: _Cursor, alignment: int) -> Tensor:
  """Reads the next tensor; its start is relative to the first tensor."""
  name = cursor.name(_LONGEST_NAME, 'tensor name')
  what = f'the tensor {messages.shorten(name)}'
  num_axes = cursor.number('I', f'number of axes of {what}')
  if not 1 <= num_axes <= _MOST_AXES:
    raise ValueError(f'{what} of {num_axes} axes, wanted 1 to {_MOST_AXES}')
  sizes = struct.unpack(
      f'<{num_axes}Q', cursor.take(8 * num_axes, f'shape of {what}'))
  kind = cursor.number('I', f'type of {what}')
  offset = cursor.number('Q', f'offset of {what}')
  if kind not in gguf.GGML_QUANT_SIZES:
    raise ValueError(f'{what} of the unknown type {kind}')
  if offset % alignment:
    raise ValueError(
        f'{what} at the offset {offset}, wanted a multiple of {alignment}')
  kind = gguf.GGMLQuantizationType(kind)
  return Tensor(name, kind, sizes[::-1], offset, _num_bytes(sizes, kind, what))


def _num_bytes(
    sizes: Sequence[int], kind: gguf.GGMLQuantizationType, what: str) -> int:
  """Bytes of a tensor, in Python integers, which do not overflow."""
  block, stored = gguf.GGML_QUANT_SIZES[kind]
  if 0 in sizes or sizes[0] % block:
    raise ValueError(
        f'{what} of the shape {sizes[::-1]}, wanted rows of a multiple of'
        f' {block} for {kind.name}')
  return math.prod(sizes) // block * stored
