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


class BonferroniTest(absltest.TestCase):

  def test_bonferroni_errors_add_up_to_the_level(self):
    self.assertEqual(intervals.bonferroni(1), intervals.LEVEL)
    self.assertAlmostEqual(1 - intervals.bonferroni(5), 0.01)


class IntervalTest(absltest.TestCase):

  def test_interval(self):
    draws = np.arange(1001.0)
    np.testing.assert_allclose(
        intervals.interval(draws, 10**6), [25.0, 975.0], atol=0.01)
    low, high = intervals.interval(draws, 10)  # Of few, wider.
    self.assertLess(low, 10.0)
    self.assertAlmostEqual(low, 1000 - high, delta=1e-6)

  def test_the_central_range_is_not_widened(self):
    draws = np.random.default_rng(0).normal(size=1000)
    low, high = intervals.central_range(draws)
    self.assertEqual(((draws < low).sum(), (draws > high).sum()), (25, 25))

  def test_nan_is_unbounded(self):
    draws = np.concatenate([np.arange(1000.0), np.full(100, np.nan)])
    self.assertEqual(intervals.percentiles(draws, 1, 0.025), (-np.inf, np.inf))
    low, high = intervals.percentiles(draws, 1, 0.2)
    self.assertBetween(low, 0, 250)
    self.assertBetween(high, 750, 1000)


if __name__ == '__main__':
  absltest.main()
