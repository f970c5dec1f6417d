"""Packs token segments into rows of one length.

A segment attends to itself only, so the model computes the same for it as for
a row of its own. Rows are nearly full, so padding costs little time, and an
evaluation compiles one to three shapes.

Packing has three steps: `fill_rows` or `one_per_row` assigns segments to rows,
`lay_out` computes where each segment starts, and the `RowLayout` writes tokens,
positions and segment ids. `pack_segments` takes these steps for scoring,
`circuits.pair_batches` for attribution pairs, `unlearn.batches` for training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from mansu_jax.runtime import sharding

ROW_LENGTH = 64  # Measured fastest for short questions on CPU.
TOKEN_BUDGET = 1024  # Tokens per batch.
MULTIPLE = 8  # Row lengths are multiples of this: few compiled shapes.
_GROWTH = 4  # Long segments go to rows of this multiple.

# (lengths of n segments, row length) -> segment numbers of each row.
FillRows = Callable[[Sequence[int], int], list[list[int]]]


class Segment(NamedTuple):
  """Tokens that attend only to each other."""

  tokens: np.ndarray  # [k] int32
  positions: np.ndarray  # [k] int32
  visible: np.ndarray  # [k, k] bool, True where the query attends to the key.


class RowLayout(NamedTuple):
  """Positions of n segments in R rows of T tokens.

  Example:
    >>> lengths = [3, 2, 4]
    >>> layout = lay_out(lengths, fill_rows(lengths, 6), (2, 6))
    >>> layout.write([[7, 7, 7], [8, 8], [9, 9, 9, 9]])
    array([[9, 9, 9, 9, 8, 8],
           [7, 7, 7, 0, 0, 0]], dtype=int32)
    >>> layout.segment_ids()
    array([[ 2,  2,  2,  2,  1,  1],
           [ 0,  0,  0, -1, -1, -1]], dtype=int32)
  """

  members: np.ndarray  # [n] int64, segment numbers, row by row
  starts: np.ndarray  # [n] int64, first tokens in the flattened rows [R * T]
  lengths: np.ndarray  # [n] int64
  shape: tuple[int, int]  # (R, T)

  @property
  def last(self) -> np.ndarray:
    """Last token of each member in the flattened rows, [n] int64."""
    return self.starts + self.lengths - 1

  def write(
      self, values: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
      padding: int = 0) -> np.ndarray:
    """Writes one value per token into the rows.

    Args:
      values: Values of each segment, by segment number. Values beyond the
        segment's length are left out.
      padding: Value at padding.

    Returns:
      [R, T] int32.
    """
    rows = np.full(self.shape, padding, np.int32)
    flat = rows.reshape(-1)
    for member, start, length in zip(
        self.members.tolist(), self.starts.tolist(), self.lengths.tolist()):
      flat[start:start + length] = values[member][:length]
    return rows

  def positions(self) -> np.ndarray:
    """Positions within the segments, 0 at padding; [R, T] int32."""
    return self.write({
        member: np.arange(length) for member, length in zip(
            self.members.tolist(), self.lengths.tolist())})

  def segment_ids(self) -> np.ndarray:
    """Segment number of each token, -1 at padding; [R, T] int32."""
    return self.write({
        member: np.full(length, member) for member, length in zip(
            self.members.tolist(), self.lengths.tolist())}, padding=-1)


@dataclasses.dataclass(frozen=True, eq=False)  # Hashed by identity.
class PackedBatch:
  """Rows to score, and the offset of each segment in them.

  Attributes:
    tokens: [B, T] int32, zero at padding.
    positions: [B, T] int32.
    attention_mask: [B, T, S] bool; padding attends to itself only.
    segments: Numbers of the batch's segments.
    offsets: Start of each of these segments in the flattened rows [B * T].
  """

  tokens: np.ndarray
  positions: np.ndarray
  attention_mask: np.ndarray
  segments: tuple[int, ...]
  offsets: tuple[int, ...]


def round_up(length: int, multiple: int = MULTIPLE) -> int:
  """The least multiple that is at least `length`."""
  return -(-length // multiple) * multiple


def row_lengths(lengths: Sequence[int], base: int = ROW_LENGTH) -> list[int]:
  """At most three row lengths such that each segment fits one."""
  longest = max(lengths)
  steps = [base, base * _GROWTH]
  fitting = [s for i, s in enumerate(steps) if i == 0 or longest > steps[i - 1]]
  if longest > fitting[-1]:
    fitting.append(round_up(longest))
  return fitting


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Assigns segments to rows by first-fit decreasing.

  Args:
    lengths: Tokens of each segment, at most `capacity`.
    capacity: Tokens per row.

  Returns:
    Segment numbers of each row.

  Example:
    >>> fill_rows([3, 2, 4], 6)
    [[2, 1], [0]]
  """
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


def one_per_row(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Assigns each segment a row of its own, in order; see `fill_rows`."""
  del capacity
  return [[i] for i in range(len(lengths))]


def lay_out(
    lengths: Sequence[int] | Mapping[int, int] | np.ndarray,
    rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> RowLayout:
  """Places segments one behind the other in their rows.

  Args:
    lengths: Tokens of each segment, by segment number.
    rows: Segment numbers of each row; not all segments need a row.
    shape: (R, T), the rows to fill. Further rows stay empty.

  Returns:
    The layout of the segments in `rows`.

  Raises:
    ValueError: there are more than R rows, or a row has more than T tokens.
  """
  starts = []
  for r, row in enumerate(rows):
    start = r * shape[1]
    for i in row:
      starts.append(start)
      start += int(lengths[i])
    used = start - r * shape[1]
    if r >= shape[0] or used > shape[1]:
      raise ValueError(
          f'Packing got {len(rows)} rows, row {r} with {used} tokens; wanted at'
          f' most {shape[0]} rows of {shape[1]} tokens. Allocate more or longer'
          ' rows.')
  members = [i for row in rows for i in row]
  return RowLayout(
      np.array(members, np.int64), np.array(starts, np.int64),
      np.array([lengths[i] for i in members], np.int64), shape)


def batch_rows(rows: int, most: int) -> int:
  """Rows per batch: at most `most`, with few empty rows in the last batch."""
  if rows <= most:
    return max(1, rows)
  return min(range(-(-3 * most // 4), most + 1), key=lambda b: (-rows % b, -b))


def pack_segments(
    segments: Sequence[Segment], *, row_length: int = ROW_LENGTH,
    token_budget: int = TOKEN_BUDGET, max_length: int | None = None,
) -> list[PackedBatch]:
  """Packs segments into batches of at most three shapes.

  Args:
    segments: Segments to pack. No segment is split over two rows.
    row_length: Usual tokens per row; longer segments get longer rows.
    token_budget: Tokens per batch. A longer row makes a batch by itself.
    max_length: Longest position that the model supports, or None.

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
        f'A text to score has {longest} tokens, but the model supports'
        f' {max_length} positions; wanted at most {max_length} tokens. Shorten'
        ' the prompt or the window.')


def _batches(
    segments: Sequence[Segment], rows: list[list[int]], capacity: int,
    token_budget: int) -> list[PackedBatch]:
  """Batches of a fixed number of rows; the last one is padded."""
  size = sharding.round_up_rows(
      batch_rows(len(rows), max(1, token_budget // capacity)))
  return [
      _batch(segments, rows[i:i + size], size, capacity)
      for i in range(0, len(rows), size)
  ]


def _batch(
    segments: Sequence[Segment], rows: list[list[int]], size: int,
    capacity: int) -> PackedBatch:
  packed = {i: segments[i] for row in rows for i in row}
  layout = lay_out(
      {i: len(s.tokens) for i, s in packed.items()}, rows, (size, capacity))
  mask = np.tile(np.eye(capacity, dtype=bool), (size, 1, 1))
  offsets = layout.starts.tolist()
  for segment, offset in zip(packed.values(), offsets):
    row, start = divmod(offset, capacity)
    stop = start + len(segment.tokens)
    mask[row, start:stop, start:stop] = segment.visible
  return PackedBatch(
      tokens=layout.write({i: s.tokens for i, s in packed.items()}),
      positions=layout.write({i: s.positions for i, s in packed.items()}),
      attention_mask=mask, segments=tuple(packed), offsets=tuple(offsets))
