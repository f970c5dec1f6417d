"""Hand numbers, degenerate cases and coverage of the intervals."""

import fractions
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from mansu_jax.statistics import statistics


def ids(facts, each):
  return [f'fact{i}' for i in range(facts) for _ in range(each)]


class HandNumbersTest(parameterized.TestCase):

  def test_accuracy(self):
    got = statistics.accuracy_with_interval([1, 1, 0, 1], ids(2, 2))
    self.assertEqual((got.value, got.n, got.facts), (0.75, 4, 2))
    self.assertLess(got.interval[0], 0.75)
    self.assertGreater(got.interval[1], 0.75)

  def test_accuracy_of_many_facts_is_near_the_normal_interval(self):
    correct = np.arange(1000) % 5 != 0  # 0.8
    got = statistics.accuracy_with_interval(correct, ids(1000, 1))
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    np.testing.assert_allclose(
        got.interval, [0.8 - half, 0.8 + half], atol=0.004)
    np.testing.assert_allclose(
        [got.lower, got.upper],
        [0.8 - half * 1.645 / 1.96, 0.8 + half * 1.645 / 1.96], atol=0.004)

  def test_paired_drop_and_gap_have_opposite_views(self):
    before, after = [1, 1, 1, 0], [1, 0, 0, 1]
    drop = statistics.paired_drop(before, after, ids(4, 1))
    gap = statistics.quantization_gap(after, before, ids(4, 1))
    self.assertEqual(drop.value, 0.25)
    self.assertEqual(gap.value, -0.25)

  def test_adjusted_gap_is_the_difference_of_gaps(self):
    got = statistics.adjusted_gap(
        quantized=[1, 1, 0, 0], fp=[0, 1, 0, 0], base_quantized=[1, 0, 1, 0],
        base_fp=[1, 1, 1, 0], facts=ids(4, 1))
    self.assertEqual(got.value, (0.5 - 0.25) - (0.5 - 0.75))

  def test_forgetting(self):
    base, unlearned = [1, 1, 1, 0], [1, 0, 0, 0]
    got = statistics.forgetting(base, unlearned, [0.25] * 4, ids(4, 1))
    self.assertAlmostEqual(got.value, (0.75 - 0.25) / (0.75 - 0.25))

  def test_forgetting_to_chance_is_one(self):
    base = np.ones(400)
    unlearned = np.arange(400) % 4 == 0
    got = statistics.forgetting(base, unlearned, [0.25] * 400, ids(400, 1))
    self.assertAlmostEqual(got.value, 1.0)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400) / 0.75
    np.testing.assert_allclose(got.interval, [1 - half, 1 + half], atol=0.01)

  @parameterized.parameters(
      (0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (0, 8, 0.0078125),
      (10, 2, 2 * 79 / 4096))
  def test_mcnemar(self, lost, won, want):
    before = [1] * lost + [0] * won + [1, 0]
    after = [0] * lost + [1] * won + [1, 0]
    self.assertAlmostEqual(statistics.mcnemar_exact(before, after), want)

  def test_mcnemar_of_many_items_does_not_overflow(self):
    before, after = [1] * 1050 + [0] * 1000, [0] * 1050 + [1] * 1000
    tail = sum(math.comb(2050, i) for i in range(1001))
    want = float(fractions.Fraction(2 * tail, 2**2050))
    self.assertAlmostEqual(statistics.mcnemar_exact(before, after), want)

  def test_smallest_detectable_gap_is_the_design_number(self):
    self.assertAlmostEqual(
        statistics.smallest_detectable_gap(2706, 0.1), 0.01, places=5)
    self.assertEqual(statistics.items_to_bound_gap(0.01, 0.1), 2706)
    with_power = statistics.items_to_bound_gap(0.01, 0.1, power=0.8)
    self.assertAlmostEqual(with_power, 0.1 * (1.6449 + 0.8416)**2 / 1e-4, -1)

  def test_effective_items(self):
    rng = np.random.default_rng(0)
    same = np.repeat(rng.random(50) < 0.5, 4)
    own = rng.random(200) < 0.5
    self.assertLess(statistics.effective_items(same, ids(50, 4)), 55)
    self.assertGreater(statistics.effective_items(own, ids(50, 4)), 130)
    self.assertEqual(statistics.effective_items(np.ones(200), ids(50, 4)), 50)

  def test_record_is_json_able(self):
    got = statistics.forgetting([0, 0], [0, 0], [0.25] * 2, ids(2, 1)).record()
    self.assertEqual(got['value'], None)
    self.assertEqual(got['interval'], [None, None])
    got = statistics.accuracy_with_interval([1, 0], ids(2, 1)).record()
    self.assertEqual((got['value'], got['n'], got['facts']), (0.5, 2, 2))

  def test_seed_decides_everything(self):
    rng = np.random.default_rng(0)
    facts = [f'fact{i}' for i in rng.integers(150, size=600)]
    correct = rng.random(600) < 0.7
    once = statistics.accuracy_with_interval(correct, facts, seed=1)
    again = statistics.accuracy_with_interval(correct, facts, seed=1)
    other = statistics.accuracy_with_interval(correct, facts, seed=2)
    self.assertEqual(once, again)
    self.assertNotEqual(once.interval, other.interval)

  def test_phrasings_that_agree_widen_the_interval(self):
    per_fact = np.arange(40) % 4 != 0
    together = statistics.accuracy_with_interval(
        np.repeat(per_fact, 5), ids(40, 5)).interval
    apart = statistics.accuracy_with_interval(
        np.repeat(per_fact, 5), ids(200, 1)).interval
    width = lambda x: x[1] - x[0]
    self.assertAlmostEqual(
        width(together) / width(apart), np.sqrt(5), delta=0.3)


class DegenerateTest(parameterized.TestCase):

  @parameterized.parameters(1, 7, 50)
  def test_all_correct_follows_the_rule_of_three(self, facts):
    got = statistics.accuracy_with_interval(np.ones(facts * 3), ids(facts, 3))
    self.assertEqual(got.value, 1.0)
    self.assertAlmostEqual(got.lower, 0.05**(1 / facts))
    self.assertAlmostEqual(got.interval[0], 0.025**(1 / facts))
    self.assertEqual(got.upper, 1.0)

  def test_all_wrong_mirrors_it(self):
    got = statistics.accuracy_with_interval(np.zeros(20), ids(20, 1))
    self.assertAlmostEqual(got.upper, 1 - 0.05**(1 / 20))
    self.assertEqual(got.lower, 0.0)

  @parameterized.parameters(1, 30)
  def test_models_that_agree_everywhere(self, facts):
    right = np.ones(facts)
    got = statistics.paired_drop(right, right, ids(facts, 1))
    self.assertEqual(got.value, 0.0)
    self.assertAlmostEqual(got.upper, 1 - 0.05**(1 / facts))
    self.assertAlmostEqual(got.lower, -got.upper)

  def test_agreeing_gaps_count_twice_as_large_events(self):
    right = np.ones(30)
    got = statistics.adjusted_gap(right, right, right, right, ids(30, 1))
    self.assertAlmostEqual(got.upper, 2 * (1 - 0.05**(1 / 30)))

  def test_one_event_is_at_least_the_exact_bound(self):
    after = np.ones(100)
    after[3] = 0
    got = statistics.paired_drop(np.ones(100), after, ids(100, 1))
    self.assertGreaterEqual(
        got.upper, stats.beta.ppf(0.95, 2, 99) - 1e-9)  # Clopper-Pearson.

  def test_facts_that_are_all_alike_keep_width(self):
    got = statistics.accuracy_with_interval([1, 0] * 100, ids(100, 2))
    self.assertAlmostEqual(got.value, 0.5)
    self.assertLess(got.lower, 0.45)
    self.assertGreater(got.upper, 0.55)

  def test_one_question(self):
    got = statistics.accuracy_with_interval([1], ['a'])
    self.assertAlmostEqual(got.interval[0], 0.025)
    self.assertEqual(got.interval[1], 1.0)

  def test_everything_forgotten_at_once_keeps_width(self):
    got = statistics.forgetting(
        np.ones(10), np.zeros(10), [0.25] * 10, ids(10, 1))
    self.assertAlmostEqual(got.value, 1 / 0.75)
    self.assertLess(got.lower, got.value - 0.1)

  def test_base_at_chance_has_no_phi(self):
    got = statistics.forgetting([1, 0, 0, 0], [0] * 4, [0.25] * 4, ids(4, 1))
    self.assertTrue(np.isnan(got.value))
    self.assertEqual(got.interval, (-np.inf, np.inf))

  def test_base_near_chance_has_unbounded_phi(self):
    got = statistics.forgetting(
        [1, 1, 0, 0, 0, 0], [0] * 6, [0.25] * 6, ids(6, 1))
    self.assertTrue(np.isfinite(got.value))
    self.assertEqual(got.interval, (-np.inf, np.inf))

  def test_unbounded_values_have_no_guard(self):
    got = statistics.interval([2.5] * 8, ids(8, 1))
    self.assertEqual(got.interval, (2.5, 2.5))


class ErrorsTest(absltest.TestCase):

  def test_lengths_differ(self):
    with self.assertRaisesRegex(ValueError, r'after has shape \(1,\).*2 fact'):
      statistics.paired_drop([1, 0], [1], ids(2, 1))

  def test_no_questions(self):
    with self.assertRaisesRegex(ValueError, 'no questions.*wanted at least'):
      statistics.accuracy_with_interval([], [])

  def test_not_yes_or_no(self):
    with self.assertRaisesRegex(ValueError, 'other than 0 and 1'):
      statistics.accuracy_with_interval([0.5, 1], ids(2, 1))

  def test_not_finite(self):
    with self.assertRaisesRegex(ValueError, 'not finite'):
      statistics.interval([np.nan, 1], ids(2, 1))

  def test_value_larger_than_said(self):
    with self.assertRaisesRegex(ValueError, 'wanted at most largest=1'):
      statistics.interval([2.0, 0.0], ids(2, 1), largest=1.0)

  def test_options(self):
    with self.assertRaisesRegex(ValueError, 'level=0.3'):
      statistics.accuracy_with_interval([1, 0], ids(2, 1), level=0.3)
    with self.assertRaisesRegex(ValueError, 'discordant=2'):
      statistics.smallest_detectable_gap(10, 2)
    with self.assertRaisesRegex(ValueError, 'gap to bound is 0'):
      statistics.items_to_bound_gap(0)


class CoverageTest(parameterized.TestCase):
  """Simulated: how often intervals hold the truth (300 runs each)."""

  @parameterized.named_parameters(
      ('independent', 40, 3, 0.8, 0.0), ('alike', 40, 3, 0.8, 1.0),
      ('near_one', 30, 4, 0.97, 0.5), ('few_facts', 8, 5, 0.7, 0.5))
  def test_accuracy(self, facts, each, p, alike):
    held = below = 0
    for run in range(300):
      rng = np.random.default_rng(run)
      shared = np.repeat(rng.random(facts) < p, each)
      own = rng.random(facts * each) < p
      correct = np.where(
          np.repeat(rng.random(facts) < alike, each), shared, own)
      got = statistics.accuracy_with_interval(
          correct, ids(facts, each), resamples=1000)
      held += got.interval[0] <= p <= got.interval[1]
      below += p <= got.upper
    self.assertGreaterEqual(held / 300, 0.92)
    self.assertGreaterEqual(below / 300, 0.92)

  @parameterized.named_parameters(
      ('balanced', 60, 3, 0.1, 0.1), ('losses_only', 60, 3, 0.02, 0.0),
      ('mostly_losses', 30, 4, 0.3, 0.02))
  def test_upper_bound_of_a_drop(self, facts, each, lose, win):
    held = 0
    for run in range(300):
      rng = np.random.default_rng(run)
      draw = rng.random(facts * each)
      drop = np.where(draw < lose, 1, np.where(draw > 1 - win, -1, 0))
      got = statistics.interval(
          drop, ids(facts, each), largest=1.0, resamples=1000)
      held += lose - win <= got.upper
    self.assertGreaterEqual(held / 300, 0.92)

  def test_forgetting(self):
    held = low = 0
    truth = (0.9 - 0.4) / (0.9 - 0.25)
    for run in range(300):
      rng = np.random.default_rng(run)
      got = statistics.forgetting(
          rng.random(120) < 0.9, rng.random(120) < 0.4, [0.25] * 120,
          ids(40, 3), resamples=1000)
      held += got.interval[0] <= truth <= got.interval[1]
      low += got.lower <= truth
    self.assertGreaterEqual(held / 300, 0.92)
    self.assertGreaterEqual(low / 300, 0.92)

  def test_interval_is_not_needlessly_wide(self):
    rng = np.random.default_rng(0)
    drop = rng.choice([1, 0, -1], p=[0.05, 0.9, 0.05], size=2706)
    got = statistics.interval(drop, ids(2706, 1), largest=1.0)
    self.assertAlmostEqual(got.upper - got.value, 0.01, delta=0.0015)


if __name__ == '__main__':
  absltest.main()
