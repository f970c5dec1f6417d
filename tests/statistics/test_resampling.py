"""Draws of groups: bootstrap samples and halves."""

from absl.testing import absltest
import numpy as np

from mansu_jax.statistics import resampling

_GROUPS = np.array(list('aabbbc'))


class DrawsTest(absltest.TestCase):

  def test_members_of_a_group_are_drawn_together(self):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
      drawn = resampling.weights(_GROUPS, rng)
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
