"""Packing of attribution pairs into rows."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.circuits import pair_batches
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.runtime import memory
from tests.circuits import small


def _pairs(lengths):
  rng = np.random.default_rng(0)
  return [pairs_lib.AttributionPair(
      *(tuple(rng.integers(1, 99, size).tolist()) for _ in range(2)),
      *rng.integers(1, 99, 2).tolist(), fact=str(i))
          for i, size in enumerate(lengths)]


class PackTest(parameterized.TestCase):

  @parameterized.parameters(
      ([5], 1), ([3, 9, 4, 7], 4), ([3, 9, 4, 7, 12], 2), ([1] * 7, 3),
      ([140, 3], 2))
  def test_pack_places_each_pair_once_in_order(self, lengths, size):
    pairs = _pairs(lengths)
    batches = pair_batches.pack(pairs, size)
    self.assertLen({b.clean.shape for b in batches}, 1)
    self.assertLen({b.last.shape for b in batches}, 1)
    found = []
    for batch in batches:
      flat = batch.segments.reshape(-1)
      for i in np.flatnonzero(batch.weight):
        places = np.flatnonzero(flat == i)
        np.testing.assert_array_equal(places, np.arange(
            batch.last[i] - places.size + 1, batch.last[i] + 1))
        np.testing.assert_array_equal(
            batch.positions.reshape(-1)[places], np.arange(places.size))
        self.assertEqual(len(set(places // batch.clean.shape[1])), 1)
        found.append(pairs_lib.AttributionPair(
            *(tuple(x.reshape(-1)[places].tolist())
              for x in (batch.clean, batch.corrupt)),
            int(batch.answer[i]), int(batch.corrupt_answer[i]),
            str(len(found))))
    self.assertEqual(found, pairs)

  def test_batches_are_few_and_even(self):
    batches = pair_batches.pack(_pairs([4] * 9), 8)
    self.assertEqual([b.weight.sum() for b in batches], [5, 4])

  @parameterized.parameters(
      ([5] * 7, 3, [5, 5, 5]), ([3, 4, 9, 15, 17, 21], 2, [8, 16, 21]),
      ([20, 3], 1, [20, 8]))
  def test_one_pair_per_row_pads_to_the_width_of_the_batch(
      self, lengths, size, widths):
    pairs = _pairs(lengths)
    batches = pair_batches.pack(pairs, size, one_per_row=True)
    self.assertEqual([b.clean.shape[1] for b in batches], widths)
    self.assertLen({b.clean.shape[0] for b in batches}, 1)
    found = [tuple(row[mask].tolist()) for b in batches
             for row, mask in zip(b.clean, b.segments >= 0) if mask.any()]
    self.assertEqual(found, [p.clean_ids for p in pairs])

  def test_pairs_share_rows(self):
    lengths = np.random.default_rng(0).integers(4, 20, 64).tolist()
    batches = pair_batches.pack(_pairs(lengths), 16)
    size = sum(b.clean.size for b in batches)
    one_a_row = len(lengths) * -(-max(lengths) // 8) * 8
    self.assertLess(size, 0.75 * one_a_row)


class ToScoreTest(parameterized.TestCase):

  def test_fewer_pairs_where_a_device_has_less_memory(self):
    pairs = _pairs([5] * 12)
    shapes = small.config()
    sizes = []
    for size in (1e9, 512e3, 1.0):
      with memory.planned(size):
        batches = pair_batches.to_score(pairs, 6, shapes)
      sizes.append(batches[0].last.size)
      self.assertEqual(sum(b.weight.sum() for b in batches), 12)
    self.assertEqual(sizes, [6, 4, 1])


if __name__ == '__main__':
  absltest.main()
