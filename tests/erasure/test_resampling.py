"""Draws of groups, and verdicts of three states."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.erasure import resampling

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

  def test_interval(self):
    draws = np.arange(1001.0)
    np.testing.assert_allclose(
        resampling.interval(draws, 10**6), [25.0, 975.0], atol=0.01)
    low, high = resampling.interval(draws, 10)  # Of few, wider.
    self.assertLess(low, 10.0)
    self.assertAlmostEqual(low, 1000 - high, delta=1e-6)


class VerdictTest(parameterized.TestCase):

  @parameterized.parameters(
      ((1, 2), 0.5, True), ((1, 2), 2.5, False), ((1, 2), 1.5, 'inconclusive'),
      ((1, 2), 1, 'inconclusive'), ((1, 2), 2, 'inconclusive'))
  def test_above_and_below(self, bounds, level, want):
    self.assertEqual(resampling.above(bounds, level), want)
    mirrored = [-bounds[1], -bounds[0]]
    self.assertEqual(resampling.below(mirrored, -level), want)

  @parameterized.parameters(
      ([True, True], True), ([], True), ([True, False], False),
      ([True, 'inconclusive'], 'inconclusive'),
      (['inconclusive', False, True], False))
  def test_all_of(self, verdicts, want):
    self.assertEqual(resampling.all_of(verdicts), want)


if __name__ == '__main__':
  absltest.main()
