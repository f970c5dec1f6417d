"""Attribution pairs in packed rows of few shapes.

The prompts of a pair are equally long, so both are packed alike. Rows hold
several pairs each and are nearly full: prompts of facts differ in length by a
factor of three, and right-padded half of all tokens would be padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.data import packing
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models import config as model_config
from mansu_jax.runtime import memory
from mansu_jax.runtime import sharding

_MULTIPLE = 8  # Row lengths are multiples of this,
_COPIES = 8  # Of what is tapped, of both prompts, and its gradients.
_LONGEST = 32  # and no longer, unless a prompt is: attention grows with it.


def pack(
    pairs: Sequence[pairs_lib.AttributionPair], size: int, *,
    one_per_row: bool = False) -> list[eap_ig.PairBatch]:
  """Packs pairs into batches of one shape, or few with `one_per_row`, in order.

  There are as few batches of at most `size` pairs as may be, and as small; the
  last is filled up with pairs of weight 0. Rows have the length that wastes
  least.

  Args:
    pairs: at least one.
    size: most pairs a batch.
    one_per_row: give each pair a row of its own, in each batch as long as its longest
      needs, rounded up to a multiple of 8 but not beyond the longest of all.
  """
  lengths = [len(p.clean_ids) for p in pairs]
  count = -(-len(pairs) // size)
  size = -(-len(pairs) // count)
  members = [list(range(i, min(i + size, len(pairs))))
             for i in range(0, len(pairs), size)]
  if one_per_row:
    fill = lambda some, capacity: [[i] for i in range(len(some))]
    widths, rows = [_width([lengths[i] for i in m], max(lengths))
                    for m in members], sharding.round_up_rows(size)
  else:
    fill = packing.fill_rows
    capacity, rows = _row_shape([[lengths[i] for i in m] for m in members])
    widths = [capacity] * count
  return [_batch([pairs[i] for i in m], size, rows, width, fill)
          for m, width in zip(members, widths)]


def to_score(
    pairs: Sequence[pairs_lib.AttributionPair], most: int,
    shapes: model_config.ModelConfig) -> list[eap_ig.PairBatch]:
  """Batches for node scores: `pack`, of as many pairs as a device has room for.

  Args:
    pairs: at least one.
    most: pairs a batch, at most.
    shapes: the model's.
  """
  longest = max(len(p.clean_ids) for p in pairs)
  taps = longest * shapes.num_layers * (
      shapes.d_ff + shapes.num_heads * shapes.d_head)  # float32
  return pack(pairs, memory.fitting(
      most, _COPIES * 4 * taps / sharding.num_row_shards()))


def _width(lengths: Sequence[int], longest: int) -> int:
  """Row length of a batch of pairs in rows of their own."""
  return min(-(-max(lengths) // _MULTIPLE) * _MULTIPLE, longest)


def _row_shape(lengths: Sequence[Sequence[int]]) -> tuple[int, int]:
  """Row length and rows that hold each batch's prompts in fewest tokens."""
  longest = max(map(max, lengths))
  shortest = -(-longest // _MULTIPLE) * _MULTIPLE
  rows = {
      capacity: max(len(packing.fill_rows(some, capacity)) for some in lengths)
      for capacity in range(shortest, max(shortest, _LONGEST) + 1, _MULTIPLE)}
  capacity = min(rows, key=lambda c: (c * rows[c], c))
  return capacity, sharding.round_up_rows(rows[capacity])


def _batch(
    pairs: Sequence[pairs_lib.AttributionPair], size: int, rows: int,
    capacity: int, fill: Callable[..., list[list[int]]]) -> eap_ig.PairBatch:
  clean, corrupt, positions = np.zeros((3, rows, capacity), np.int32)
  segments = np.full((rows, capacity), -1, np.int32)
  last, answer, corrupt_answer = np.zeros((3, size), np.int32)
  filled = fill([len(p.clean_ids) for p in pairs], capacity)
  for row, members in enumerate(filled):
    start = 0
    for i in members:
      pair, stop = pairs[i], start + len(pairs[i].clean_ids)
      clean[row, start:stop] = pair.clean_ids
      corrupt[row, start:stop] = pair.corrupt_ids
      positions[row, start:stop] = np.arange(stop - start)
      segments[row, start:stop] = i
      last[i] = row * capacity + stop - 1
      answer[i], corrupt_answer[i] = pair.answer_id, pair.corrupt_answer_id
      start = stop
  weight = (np.arange(size) < len(pairs)).astype(np.float32)
  return eap_ig.PairBatch(
      clean, corrupt, positions, segments, last, answer, corrupt_answer, weight)
