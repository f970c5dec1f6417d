"""Gaps: hand numbers, degenerate cases, coverage."""

import fractions
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from mansu_jax.statistics import gaps
from tests.statistics import ids


class HandNumbersTest(parameterized.TestCase):

  def test_paired_drop_and_gap_have_opposite_views(self):
    before, after = [1, 1, 1, 0], [1, 0, 0, 1]
    drop = gaps.paired_drop(before, after, ids.repeat(4, 1))
    gap = gaps.quantization_gap(after, before, ids.repeat(4, 1))
    self.assertEqual(drop.value, 0.25)
    self.assertEqual(gap.value, -0.25)

  def test_adjusted_gap_is_the_difference_of_gaps(self):
    got = gaps.adjusted_gap(
        quantized=[1, 1, 0, 0], fp=[0, 1, 0, 0], base_quantized=[1, 0, 1, 0],
        base_fp=[1, 1, 1, 0], facts=ids.repeat(4, 1))
    self.assertEqual(got.value, (0.5 - 0.25) - (0.5 - 0.75))

  @parameterized.parameters(
      (0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (0, 8, 0.0078125),
      (10, 2, 2 * 79 / 4096))
  def test_mcnemar(self, lost, won, want):
    before = [1] * lost + [0] * won + [1, 0]
    after = [0] * lost + [1] * won + [1, 0]
    self.assertAlmostEqual(gaps.mcnemar_exact(before, after), want)

  def test_mcnemar_of_many_items_does_not_overflow(self):
    before, after = [1] * 1050 + [0] * 1000, [0] * 1050 + [1] * 1000
    tail = sum(math.comb(2050, i) for i in range(1001))
    want = float(fractions.Fraction(2 * tail, 2**2050))
    self.assertAlmostEqual(gaps.mcnemar_exact(before, after), want)


class DegenerateTest(parameterized.TestCase):

  @parameterized.parameters(1, 30)
  def test_models_that_agree_everywhere(self, facts):
    right = np.ones(facts)
    got = gaps.paired_drop(right, right, ids.repeat(facts, 1))
    self.assertEqual(got.value, 0.0)
    self.assertAlmostEqual(got.upper, 1 - 0.05**(1 / facts))
    self.assertAlmostEqual(got.lower, -got.upper)

  def test_agreeing_gaps_count_twice_as_large_events(self):
    right = np.ones(30)
    got = gaps.adjusted_gap(right, right, right, right, ids.repeat(30, 1))
    self.assertAlmostEqual(got.upper, 2 * (1 - 0.05**(1 / 30)))

  def test_one_event_is_at_least_the_exact_bound(self):
    after = np.ones(100)
    after[3] = 0
    got = gaps.paired_drop(np.ones(100), after, ids.repeat(100, 1))
    self.assertGreaterEqual(
        got.upper, stats.beta.ppf(0.95, 2, 99) - 1e-9)  # Clopper-Pearson.

  def test_unbounded_values_have_no_guard(self):
    got = gaps.mean_difference([2.5] * 8, ids.repeat(8, 1))
    self.assertEqual(got.interval, (2.5, 2.5))


class ErrorsTest(absltest.TestCase):

  def test_lengths_differ(self):
    with self.assertRaisesRegex(ValueError, r'after has shape \(1,\).*2 fact'):
      gaps.paired_drop([1, 0], [1], ids.repeat(2, 1))

  def test_not_finite(self):
    with self.assertRaisesRegex(ValueError, 'not finite'):
      gaps.mean_difference([np.nan, 1], ids.repeat(2, 1))

  def test_values_above_the_stated_largest_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'wanted at most largest=1'):
      gaps.mean_difference([2.0, 0.0], ids.repeat(2, 1), largest=1.0)


class CoverageTest(parameterized.TestCase):
  """Simulated: how often intervals hold the truth (300 runs each)."""

  @parameterized.named_parameters(
      ('balanced', 60, 3, 0.1, 0.1), ('losses_only', 60, 3, 0.02, 0.0),
      ('mostly_losses', 30, 4, 0.3, 0.02))
  def test_upper_bound_of_a_drop(self, facts, each, lose, win):
    held = 0
    for run in range(300):
      rng = np.random.default_rng(run)
      draw = rng.random(facts * each)
      drop = np.where(draw < lose, 1, np.where(draw > 1 - win, -1, 0))
      got = gaps.mean_difference(
          drop, ids.repeat(facts, each), largest=1.0, resamples=1000)
      held += lose - win <= got.upper
    self.assertGreaterEqual(held / 300, 0.92)

  def test_interval_is_not_needlessly_wide(self):
    rng = np.random.default_rng(0)
    drop = rng.choice([1, 0, -1], p=[0.05, 0.9, 0.05], size=2706)
    got = gaps.mean_difference(drop, ids.repeat(2706, 1), largest=1.0)
    self.assertAlmostEqual(got.upper - got.value, 0.01, delta=0.0015)


if __name__ == '__main__':
  absltest.main()
