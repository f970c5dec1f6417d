"""The positive part, its standard errors and the error of given facts."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.statistics import clipped


def _mean_estimate(mu, sigma):
  """Mean of `positive_part` of x ~ N(mu, sigma^2), by summation."""
  z = np.linspace(-9, 9, 200001)
  weight = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
  return np.sum(clipped.positive_part(mu + sigma * z, sigma) * weight)


class PositivePartTest(parameterized.TestCase):

  @parameterized.parameters(
      (0.0, 0.0), (1.0, -0.2274), (-1.0, -0.2274), (4.0, -0.0073))
  def test_bias_in_units_of_sigma(self, mu, want):
    for sigma in (0.05, 2.0):
      bias = _mean_estimate(mu * sigma, sigma) / sigma - max(mu, 0)
      self.assertAlmostEqual(bias, want, places=4)

  def test_the_bias_is_largest_at_sigma(self):
    mus = np.linspace(-4, 4, 81)
    bias = [_mean_estimate(mu, 1.0) - max(mu, 0) for mu in mus]
    self.assertAlmostEqual(abs(mus[np.argmin(bias)]), 1.0, delta=0.11)
    self.assertLess(max(bias), 1e-6)

  def test_no_noise(self):
    np.testing.assert_array_equal(
        clipped.positive_part(np.array([-1.0, 0.0, 2.0]), 0.0), [0, 0, 2])

  def test_broadcasts(self):
    got = clipped.positive_part(np.zeros((3, 2)), np.array([0.0, 1.0]))
    np.testing.assert_allclose(got[1], [0.0, -1 / math.sqrt(math.pi)])


class StandardErrorsTest(parameterized.TestCase):

  def _errors(self, right, index, ignorance=0.25, number=None):
    right = np.asarray(right, np.float64)
    number = np.zeros(len(right), int) if number is None else number
    return clipped.standard_errors(
        right - ignorance, right, np.asarray(index), np.asarray(number))

  def test_is_the_classic_one_for_one_answer_a_fact(self):
    right = np.arange(100) % 4 == 0
    want = np.std(right, ddof=1) / 10
    np.testing.assert_allclose(self._errors(right, range(100)), [want])

  def test_answers_that_agree_in_a_fact_count_once(self):
    right = np.repeat(np.arange(100) % 4 == 0, 3)
    want = np.std(np.arange(100) % 4 == 0, ddof=1) / 10
    got = self._errors(right, np.repeat(np.arange(100), 3))
    np.testing.assert_allclose(got, [want])

  def test_forms_are_apart(self):
    right, number = [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]
    got = self._errors(right, [0, 1, 2, 3, 0, 1], number=number)
    np.testing.assert_allclose(
        got, [np.std([1, 0, 1, 0], ddof=1) / 2, math.sqrt(3 / 16 / 2)])

  def test_ignorance_that_varies_is_noise(self):
    right, facts = np.arange(40) % 2, np.arange(40)
    even = self._errors(right, facts, 0.25)
    noisy = self._errors(right, facts, np.where(facts % 2, 0.1, 0.4))
    self.assertGreater(noisy[0], even[0])

  @parameterized.parameters(0, 1)
  def test_equal_answers_are_not_certain(self, answer):
    got = self._errors([answer] * 5, range(5))
    np.testing.assert_allclose(got, [math.sqrt(1 / 7 * 6 / 7 / 5)])
    more = self._errors([answer] * 50, range(50))
    self.assertLess(more[0], got[0] / 5)

  def test_facts_that_are_all_alike_are_not_certain(self):
    got = self._errors([1, 0] * 100, np.repeat(np.arange(100), 2))
    np.testing.assert_allclose(got, [0.05])

  def test_one_fact(self):
    np.testing.assert_allclose(
        self._errors([1, 0], [0, 0]), [0.5])


class ErrorOfTheseFactsTest(absltest.TestCase):

  def _error(self, unlearned, forms, ignorance=0.0, sets=1):
    facts = len(unlearned) // forms // sets
    index = np.repeat(np.arange(facts), forms * sets)
    number = np.tile(np.repeat(np.arange(forms), sets), facts)
    n = len(unlearned)
    columns = np.stack(
        [np.ones(n), np.asarray(unlearned), np.full(n, ignorance),
         np.full(n, ignorance)], 1)
    return clipped.error_of_these_facts(columns, index, number) * n * (
        1 - ignorance)

  def test_facts_known_in_all_forms_or_none_are_certain_but_for_one(self):
    self.assertAlmostEqual(self._error([1] * 40 + [0] * 160, 4), 1.0)

  def test_forms_that_differ(self):
    # Each of 10 facts: 4 / 3 * (0.25 * 0.75**2 + 0.75 * 0.25**2) * 4 = 1.
    self.assertAlmostEqual(
        self._error([1, 0, 0, 0] * 10, 4), math.sqrt(10 + 1))

  def test_guesses_may_agree_in_all_forms(self):
    lucky = 10 * 4**2 * 0.25 * 0.75
    self.assertAlmostEqual(
        self._error([0] * 40, 4, 0.25), math.sqrt(lucky + 1))

  def test_sets_of_a_form_are_one_answer(self):
    self.assertAlmostEqual(
        self._error([1, 1, 0, 0] * 10, 2, sets=2), math.sqrt(10 * 4 + 4))

  def test_one_form_counts_facts(self):
    self.assertAlmostEqual(self._error([1] * 5 + [0] * 5, 1), math.sqrt(3.5))


class GuessingErrorsTest(absltest.TestCase):

  def test_by_hand(self):
    """Two facts, one asked twice in form 0; form 1 has no lucky guess."""
    columns = np.array([
        [1, 0, 0.9, 0.5], [1, 0, 0.9, 0.5], [1, 0, 0.9, 0.5],
        [1, 0, 0.9, 0.0], [1, 0, 0.9, 0.0]])
    index, number = np.array([0, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 1])
    got = clipped.guessing_errors(columns, index, number)
    np.testing.assert_allclose(got, [np.sqrt(0.25 * (4 + 1)) / 3, 0.0])

  def test_the_error_of_measured_ignorance_counts(self):
    columns = np.array([[1, 0, 0.9, 0.0], [1, 0, 0.9, 1.0]])
    got = clipped.guessing_errors(
        columns, np.array([0, 1]), np.array([0, 0]))
    np.testing.assert_allclose(got, [np.sqrt(0.25 * 2 + 0.5) / 2])

  def test_wrong_answers_that_no_guess_gets_right_are_no_negative_knowledge(
      self):
    columns = np.array([[1.0, 0.0, 0.0, 0.0]] * 30)
    share = clipped.Share.of(
        columns, np.arange(30), np.zeros(30, int))
    self.assertEqual(float(share(share.table.mean(0))), 0.0)


class ShareTest(absltest.TestCase):

  def test_each_model_leads_its_own_ignorance(self):
    """(0.75 - 0.5) / (1 - 0.5), of 4000 facts; noise is below 0.001."""
    unlearned = np.tile([1, 1, 1, 0], 1000)
    columns = np.stack([np.ones(4000), unlearned, np.full(4000, 0.25),
                        np.full(4000, 0.5)], 1)
    share = clipped.Share.of(columns, np.arange(4000), np.zeros(4000, int))
    self.assertAlmostEqual(share.lead, 0.5)
    self.assertAlmostEqual(
        float(share(share.table.mean(0))), 0.5, delta=0.001)


if __name__ == '__main__':
  absltest.main()
