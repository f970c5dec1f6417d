"""Draws of groups: bootstrap samples and halves."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.statistics import resampling

_GROUPS = np.array(list('aabbbc'))


class DrawsTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 5, 64, 1000)
  def test_counts_equal_single_draws(self, size):
    one, other = (np.random.default_rng(3) for _ in range(2))
    got = resampling.counts(size, 4, one)
    self.assertEqual(got.shape, (4, size))
    for row in got:
      drawn = other.integers(size, size=size)
      np.testing.assert_array_equal(row, np.bincount(drawn, minlength=size))
    self.assertEqual(one.random(), other.random())  # As many draws.

  def test_half_of_an_odd_number_is_rounded_down(self):
    rng = np.random.default_rng(0)
    firsts = np.array([resampling.first_half(7, rng) for _ in range(40)])
    np.testing.assert_array_equal(firsts.sum(1), 3)
    self.assertGreater(len(np.unique(firsts, axis=0)), 20)

  def test_members_of_a_group_are_drawn_together(self):
    rng = np.random.default_rng(0)
    seen = set()
    for drawn in resampling.weights(_GROUPS, 100, rng):
      self.assertAlmostEqual(drawn.sum(), 1.0)
      self.assertEqual(drawn[0], drawn[1])
      self.assertLen(set(drawn[2:5]), 1)
      seen.add(tuple(np.round(drawn / drawn[drawn > 0].min()).astype(int)))
    self.assertIn((0, 0, 0, 0, 0, 1), seen)  # One group three times.
    self.assertIn((1, 1, 1, 1, 1, 1), seen)
    self.assertLen(seen, 10)  # 3 draws of 3 groups, in any order.

  def test_halves_share_no_group(self):
    rng = np.random.default_rng(0)
    for _ in range(20):
      one, other = resampling.halves(_GROUPS, rng)
      self.assertAlmostEqual(one.sum(), 1.0)
      self.assertAlmostEqual(other.sum(), 1.0)
      for group in 'abc':
        inside = _GROUPS == group
        self.assertEqual(
            (one[inside] > 0).all(), not (other[inside] > 0).any())


if __name__ == '__main__':
  absltest.main()
