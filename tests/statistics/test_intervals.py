"""Tails that are widened for few facts."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.statistics import intervals


class ExpandedTest(parameterized.TestCase):

  def test_is_the_percentile_where_facts_are_many_or_one(self):
    self.assertAlmostEqual(intervals.expanded(0.025, 10**7), 0.025, delta=1e-6)
    self.assertEqual(intervals.expanded(0.025, 1), 0.025)

  @parameterized.parameters(6, 20)
  def test_covers_a_mean(self, count):
    rng = np.random.default_rng(0)
    tail, held, plain = intervals.expanded(0.025, count), 0, 0
    for _ in range(600):
      values = rng.normal(size=count)
      means = values[rng.integers(count, size=(400, count))].mean(1)
      low, narrow, wide, high = np.quantile(
          means, [tail, 0.025, 0.975, 1 - tail])
      held += low <= 0 <= high
      plain += narrow <= 0 <= wide
    self.assertGreater(held / 600, 0.92)
    self.assertGreater(held, plain)


if __name__ == '__main__':
  absltest.main()
