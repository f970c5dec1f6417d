"""Row layouts against a loop-written reference, and batches to score."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.data import packing


def _reference(sequences, rows, shape):
  """Tokens, positions, segment ids and starts, one token at a time."""
  tokens = [[0] * shape[1] for _ in range(shape[0])]
  positions = [[0] * shape[1] for _ in range(shape[0])]
  ids = [[-1] * shape[1] for _ in range(shape[0])]
  starts = {}
  for r, row in enumerate(rows):
    column = 0
    for i in row:
      starts[i] = r * shape[1] + column
      for position, token in enumerate(sequences[i]):
        tokens[r][column] = token
        positions[r][column] = position
        ids[r][column] = i
        column += 1
  return tokens, positions, ids, starts


class RowLayoutTest(parameterized.TestCase):

  @parameterized.product(
      seed=(0, 1, 2), fill=(packing.fill_rows, packing.one_per_row))
  def test_equals_the_reference(self, seed, fill):
    rng = np.random.default_rng(seed)
    sequences = [
        rng.integers(1, 99, k).tolist() for k in rng.integers(1, 20, 30)]
    rows = fill([len(s) for s in sequences], 24)
    shape = len(rows) + seed, 24  # Further rows stay empty.
    layout = packing.lay_out([len(s) for s in sequences], rows, shape)
    tokens, positions, ids, starts = _reference(sequences, rows, shape)
    for got, want in ((layout.write(sequences), tokens),
                      (layout.positions(), positions),
                      (layout.segment_ids(), ids)):
      np.testing.assert_array_equal(got, want)
      self.assertEqual(got.dtype, np.int32)
    self.assertEqual(
        dict(zip(layout.members.tolist(), layout.starts.tolist())), starts)
    np.testing.assert_array_equal(layout.last, [
        starts[i] + len(sequences[i]) - 1 for row in rows for i in row])

  def test_lay_out_takes_segments_by_number(self):
    layout = packing.lay_out({7: 2, 3: 1}, [[7, 3]], (1, 4))
    np.testing.assert_array_equal(layout.segment_ids(), [[7, 7, 3, -1]])
    np.testing.assert_array_equal(  # The third value is padding of its array.
        layout.write({7: [5, 6, 0], 3: [4]}), [[5, 6, 4, 0]])

  @parameterized.parameters(
      ([[0], [1]], (1, 8), 'got 2 rows'), ([[0, 1]], (1, 5), 'with 6 tokens'))
  def test_refuses_what_does_not_fit(self, rows, shape, message):
    with self.assertRaisesRegex(ValueError, message):
      packing.lay_out([3, 3], rows, shape)

  @parameterized.parameters((1, 8, 8), (8, 8, 8), (9, 8, 16), (5, 1, 5))
  def test_round_up(self, length, multiple, want):
    self.assertEqual(packing.round_up(length, multiple), want)

  def test_first_fit_decreasing_by_hand(self):
    self.assertEqual(
        packing.fill_rows([2, 5, 3, 3, 4], 7), [[1, 0], [4, 2], [3]])
    self.assertEqual(packing.one_per_row([2, 5], 7), [[0], [1]])


class PackSegmentsTest(parameterized.TestCase):

  def segments(self, lengths):
    return [
        packing.Segment(
            np.full(k, i + 1, np.int32), np.arange(k, dtype=np.int32),
            np.tril(np.ones((k, k), bool)))
        for i, k in enumerate(lengths)]

  @parameterized.parameters(
      ([3],), ([64] * 5,), ([1, 64, 65, 256, 257, 2, 2],), ([5] * 200,))
  def test_every_segment_is_placed_once_without_overlap(self, lengths):
    segments = self.segments(lengths)
    batches = packing.pack_segments(segments)
    placed = [i for batch in batches for i in batch.segments]
    self.assertCountEqual(placed, range(len(lengths)))
    self.assertLessEqual(len({b.tokens.shape for b in batches}), 3)
    for batch in batches:
      flat, width = batch.tokens.ravel(), batch.tokens.shape[1]
      owner = np.zeros(flat.size, int)
      for i, start in zip(batch.segments, batch.offsets):
        stop = start + lengths[i]
        self.assertTrue(np.all(flat[start:stop] == i + 1))
        self.assertEqual(start // width, (stop - 1) // width)
        owner[start:stop] = i + 1
      owner = owner.reshape(batch.tokens.shape)
      crossed = owner[:, :, None] != owner[:, None, :]
      self.assertFalse(np.any(batch.attention_mask & crossed))
      self.assertTrue(np.all(batch.attention_mask.any(-1)))  # No NaN rows.
      self.assertTrue(np.all(np.triu(batch.attention_mask, 1) == 0))

  def test_rows_are_nearly_full(self):
    lengths = np.random.default_rng(0).integers(5, 25, 500).tolist()
    batches = packing.pack_segments(self.segments(lengths))
    used = sum(batch.tokens.size for batch in batches)
    self.assertLess(used, 1.05 * sum(lengths))

  def test_budget_bounds_a_batch(self):
    batches = packing.pack_segments(
        self.segments([60] * 50), token_budget=256)
    self.assertLessEqual(max(b.tokens.size for b in batches), 256)

  @parameterized.parameters((0, 16, 1), (5, 16, 5), (17, 16, 12), (32, 16, 16))
  def test_batch_rows(self, rows, most, want):
    got = packing.batch_rows(rows, most)
    waste = lambda size: -rows % size
    self.assertLessEqual(waste(got), waste(want))
    self.assertLessEqual(got, most)

  def test_nothing_to_pack(self):
    self.assertEqual(packing.pack_segments([]), [])


if __name__ == '__main__':
  absltest.main()
