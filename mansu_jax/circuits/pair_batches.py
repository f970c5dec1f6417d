"""Packs attribution pairs into rows of few shapes.

Both prompts of a pair have the same length, so they share one layout. Prompts
of facts differ in length by a factor of three: with one pair per row, half of
all tokens would be padding. Shared rows are nearly full.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.data import packing
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models import config as model_config
from mansu_jax.runtime import memory
from mansu_jax.runtime import sharding

_COPIES = 8  # Arrays per tapped activation: both prompts and their gradients.
_LONGEST = 32  # Longest shared row, unless a prompt is longer: attention costs.


def pack(
    pairs: Sequence[pairs_lib.AttributionPair], size: int, *,
    one_per_row: bool = False) -> list[eap_ig.PairBatch]:
  """Packs pairs, in order, into batches of one shape.

  The number of batches is the least that `size` allows, and pairs are divided
  evenly among them. The last batch is padded with pairs of weight 0. Shared
  rows get the length that needs fewest tokens.

  Args:
    pairs: At least one pair.
    size: Most pairs per batch.
    one_per_row: Whether each pair gets a row of its own. Batches then differ in
      row length: the longest prompt of the batch, rounded up to a multiple of
      8, but not beyond the longest prompt of all pairs.
  """
  lengths = [len(p.clean_ids) for p in pairs]
  count = -(-len(pairs) // size)
  size = -(-len(pairs) // count)
  batches = [range(i, min(i + size, len(pairs)))
             for i in range(0, len(pairs), size)]
  by_batch = [[lengths[i] for i in batch] for batch in batches]
  if one_per_row:
    fill, rows = packing.one_per_row, sharding.round_up_rows(size)
    widths = [min(packing.round_up(max(some)), max(lengths))
              for some in by_batch]
  else:
    fill = packing.fill_rows
    width, rows = _row_shape(by_batch)
    widths = [width] * count
  return [_batch([pairs[i] for i in batch], size, (rows, width), fill)
          for batch, width in zip(batches, widths)]


def to_score(
    pairs: Sequence[pairs_lib.AttributionPair], most: int,
    shapes: model_config.ModelConfig) -> list[eap_ig.PairBatch]:
  """Packs pairs for node scores into batches that fit a device's memory.

  Args:
    pairs: At least one pair.
    most: Most pairs per batch.
    shapes: Config of the model.
  """
  longest = max(len(p.clean_ids) for p in pairs)
  taps = longest * shapes.num_layers * (
      shapes.d_ff + shapes.num_heads * shapes.d_head)  # float32
  return pack(pairs, memory.fitting(
      most, _COPIES * 4 * taps / sharding.num_row_shards()))


def _row_shape(lengths: Sequence[Sequence[int]]) -> tuple[int, int]:
  """Row length and rows that hold each batch's prompts in fewest tokens."""
  shortest = packing.round_up(max(map(max, lengths)))
  rows = {
      capacity: max(len(packing.fill_rows(some, capacity)) for some in lengths)
      for capacity in range(
          shortest, max(shortest, _LONGEST) + 1, packing.MULTIPLE)}
  capacity = min(rows, key=lambda c: (c * rows[c], c))
  return capacity, sharding.round_up_rows(rows[capacity])


def _batch(
    pairs: Sequence[pairs_lib.AttributionPair], size: int,
    shape: tuple[int, int], fill: packing.FillRows) -> eap_ig.PairBatch:
  """Packs pairs into rows of `shape` [R, T], with room for `size` pairs."""
  lengths = [len(p.clean_ids) for p in pairs]
  layout = packing.lay_out(lengths, fill(lengths, shape[1]), shape)
  last, answer, corrupt_answer = np.zeros((3, size), np.int32)
  last[layout.members] = layout.last
  answer[:len(pairs)] = [p.answer_id for p in pairs]
  corrupt_answer[:len(pairs)] = [p.corrupt_answer_id for p in pairs]
  return eap_ig.PairBatch(
      clean=layout.write([p.clean_ids for p in pairs]),
      corrupt=layout.write([p.corrupt_ids for p in pairs]),
      positions=layout.positions(), segments=layout.segment_ids(), last=last,
      answer=answer, corrupt_answer=corrupt_answer,
      weight=(np.arange(size) < len(pairs)).astype(np.float32))
