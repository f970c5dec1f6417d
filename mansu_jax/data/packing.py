"""Packs many short token segments into few rows of one length.

A segment attends to itself only, so it is scored as if it stood alone; rows
are nearly full, so almost no time goes to padding, and a whole evaluation runs
in one to three compiled shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from mansu_jax.runtime import sharding

ROW_LENGTH = 64  # Usual row; measured fastest for short questions on CPU.
TOKEN_BUDGET = 1024  # Tokens a batch.
_GROWTH = 4  # Long segments go to rows of this multiple.
_MULTIPLE = 8  # Row lengths are multiples of this.


class Segment(NamedTuple):
  """Tokens that see nothing outside themselves."""

  tokens: np.ndarray  # [k] int32
  positions: np.ndarray  # [k] int32
  visible: np.ndarray  # [k, k] bool: query sees key.


@dataclasses.dataclass(frozen=True, eq=False)  # A key by what it is.
class PackedBatch:
  """A batch of rows with the place of each segment in it.

  Attributes:
    tokens: [B, T] int32, zero at padding.
    positions: [B, T] int32.
    attention_mask: [B, T, S] bool; padding sees itself only.
    segments: indices of the segments here.
    offsets: for each of them, where it starts in the flattened [B * T].
  """

  tokens: np.ndarray
  positions: np.ndarray
  attention_mask: np.ndarray
  segments: tuple[int, ...]
  offsets: tuple[int, ...]


def row_lengths(lengths: Sequence[int], base: int = ROW_LENGTH) -> list[int]:
  """At most three row lengths such that each segment fits one."""
  longest = max(lengths)
  steps = [base, base * _GROWTH]
  fitting = [s for i, s in enumerate(steps) if i == 0 or longest > steps[i - 1]]
  if longest > fitting[-1]:
    fitting.append(-(-longest // _MULTIPLE) * _MULTIPLE)
  return fitting


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """First-fit decreasing: indices of the segments of each row."""
  rows: list[list[int]] = []
  room: list[int] = []
  order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
  for i in order:
    for r, free in enumerate(room):
      if lengths[i] <= free:
        rows[r].append(i)
        room[r] -= lengths[i]
        break
    else:
      rows.append([i])
      room.append(capacity - lengths[i])
  return rows


def batch_rows(rows: int, most: int) -> int:
  """Rows a batch: at most `most`, of few empty rows in the last batch."""
  if rows <= most:
    return max(1, rows)
  return min(range(-(-3 * most // 4), most + 1), key=lambda b: (-rows % b, -b))


def pack_segments(
    segments: Sequence[Segment], *, row_length: int = ROW_LENGTH,
    token_budget: int = TOKEN_BUDGET, max_length: int | None = None,
) -> list[PackedBatch]:
  """Packs segments into batches of at most three shapes.

  Args:
    segments: what to pack; a row holds whole segments.
    row_length: length of the usual row; longer segments get longer rows.
    token_budget: tokens a batch; a row that is longer makes its own batch.
    max_length: longest position that the model knows, or None.

  Returns:
    Batches that hold each segment once.

  Raises:
    ValueError: a segment is longer than `max_length`.
  """
  if not segments:
    return []
  lengths = [len(s.tokens) for s in segments]
  _check_length(segments, max_length)
  batches, lower = [], 0
  for capacity in row_lengths(lengths, row_length):
    chosen = [i for i, k in enumerate(lengths) if lower < k <= capacity]
    rows = fill_rows([lengths[i] for i in chosen], capacity)
    rows = [[chosen[i] for i in row] for row in rows]
    batches += _batches(segments, rows, capacity, token_budget)
    lower = capacity
  return batches


def _check_length(
    segments: Sequence[Segment], max_length: int | None) -> None:
  longest = max(int(s.positions.max()) + 1 for s in segments)
  if max_length is not None and longest > max_length:
    raise ValueError(
        f'A text to score has {longest} tokens, but the model knows positions'
        f' up to {max_length}; wanted at most {max_length}. Shorten the prompt'
        ' or the window.')


def _batches(
    segments: Sequence[Segment], rows: list[list[int]], capacity: int,
    token_budget: int) -> list[PackedBatch]:
  """Batches of a fixed number of rows; the last is padded with empty ones."""
  size = sharding.round_up_rows(
      batch_rows(len(rows), max(1, token_budget // capacity)))
  return [
      _batch(segments, rows[i:i + size], size, capacity)
      for i in range(0, len(rows), size)
  ]


def _batch(
    segments: Sequence[Segment], rows: list[list[int]], size: int,
    capacity: int) -> PackedBatch:
  tokens = np.zeros((size, capacity), np.int32)
  positions = np.zeros((size, capacity), np.int32)
  mask = np.tile(np.eye(capacity, dtype=bool), (size, 1, 1))
  placed, offsets = [], []
  for r, row in enumerate(rows):
    start = 0
    for i in row:
      stop = start + len(segments[i].tokens)
      tokens[r, start:stop] = segments[i].tokens
      positions[r, start:stop] = segments[i].positions
      mask[r, start:stop, start:stop] = segments[i].visible
      placed.append(i)
      offsets.append(r * capacity + start)
      start = stop
  return PackedBatch(tokens, positions, mask, tuple(placed), tuple(offsets))
