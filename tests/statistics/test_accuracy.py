"""Accuracies: hand numbers, degenerate cases, coverage."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.statistics import accuracy
from tests.statistics import ids


class HandNumbersTest(absltest.TestCase):

  def test_accuracy(self):
    got = accuracy.accuracy_with_interval([1, 1, 0, 1], ids.repeat(2, 2))
    self.assertEqual((got.value, got.n, got.facts), (0.75, 4, 2))
    self.assertLess(got.interval[0], 0.75)
    self.assertGreater(got.interval[1], 0.75)

  def test_accuracy_of_many_facts_is_near_the_normal_interval(self):
    correct = np.arange(1000) % 5 != 0  # 0.8
    got = accuracy.accuracy_with_interval(correct, ids.repeat(1000, 1))
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    np.testing.assert_allclose(
        got.interval, [0.8 - half, 0.8 + half], atol=0.004)
    np.testing.assert_allclose(
        [got.lower, got.upper],
        [0.8 - half * 1.645 / 1.96, 0.8 + half * 1.645 / 1.96], atol=0.004)

  def test_record_is_json_able(self):
    got = accuracy.accuracy_with_interval([1, 0], ids.repeat(2, 1)).record()
    self.assertEqual((got['value'], got['n'], got['facts']), (0.5, 2, 2))

  def test_seed_decides_everything(self):
    rng = np.random.default_rng(0)
    facts = [f'fact{i}' for i in rng.integers(150, size=600)]
    correct = rng.random(600) < 0.7
    once = accuracy.accuracy_with_interval(correct, facts, seed=1)
    again = accuracy.accuracy_with_interval(correct, facts, seed=1)
    other = accuracy.accuracy_with_interval(correct, facts, seed=2)
    self.assertEqual(once, again)
    self.assertNotEqual(once.interval, other.interval)

  def test_phrasings_that_agree_widen_the_interval(self):
    per_fact = np.arange(40) % 4 != 0
    together = accuracy.accuracy_with_interval(
        np.repeat(per_fact, 5), ids.repeat(40, 5)).interval
    apart = accuracy.accuracy_with_interval(
        np.repeat(per_fact, 5), ids.repeat(200, 1)).interval
    width = lambda x: x[1] - x[0]
    self.assertAlmostEqual(
        width(together) / width(apart), np.sqrt(5), delta=0.3)


class DegenerateTest(parameterized.TestCase):

  @parameterized.parameters(1, 7, 50)
  def test_all_correct_follows_the_rule_of_three(self, facts):
    got = accuracy.accuracy_with_interval(
        np.ones(facts * 3), ids.repeat(facts, 3))
    self.assertEqual(got.value, 1.0)
    self.assertAlmostEqual(got.lower, 0.05**(1 / facts))
    self.assertAlmostEqual(got.interval[0], 0.025**(1 / facts))
    self.assertEqual(got.upper, 1.0)

  def test_all_wrong_mirrors_it(self):
    got = accuracy.accuracy_with_interval(np.zeros(20), ids.repeat(20, 1))
    self.assertAlmostEqual(got.upper, 1 - 0.05**(1 / 20))
    self.assertEqual(got.lower, 0.0)

  def test_facts_that_are_all_alike_keep_width(self):
    got = accuracy.accuracy_with_interval([1, 0] * 100, ids.repeat(100, 2))
    self.assertAlmostEqual(got.value, 0.5)
    self.assertLess(got.lower, 0.45)
    self.assertGreater(got.upper, 0.55)

  def test_one_question(self):
    got = accuracy.accuracy_with_interval([1], ['a'])
    self.assertAlmostEqual(got.interval[0], 0.025)
    self.assertEqual(got.interval[1], 1.0)


class ErrorsTest(absltest.TestCase):

  def test_no_questions(self):
    with self.assertRaisesRegex(ValueError, 'no questions.*wanted at least'):
      accuracy.accuracy_with_interval([], [])

  def test_values_other_than_0_and_1_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'other than 0 and 1'):
      accuracy.accuracy_with_interval([0.5, 1], ids.repeat(2, 1))

  def test_level(self):
    with self.assertRaisesRegex(ValueError, 'level=0.3'):
      accuracy.accuracy_with_interval([1, 0], ids.repeat(2, 1), level=0.3)


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
      got = accuracy.accuracy_with_interval(
          correct, ids.repeat(facts, each), resamples=1000)
      held += got.interval[0] <= p <= got.interval[1]
      below += p <= got.upper
    self.assertGreaterEqual(held / 300, 0.92)
    self.assertGreaterEqual(below / 300, 0.92)


if __name__ == '__main__':
  absltest.main()
