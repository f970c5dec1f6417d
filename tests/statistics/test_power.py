"""Detectable gaps, effective items and verdicts on forgetting."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.statistics import forgetting
from mansu_jax.statistics import intervals
from mansu_jax.statistics import power
from tests.statistics import ids


class HandNumbersTest(absltest.TestCase):

  def test_smallest_detectable_gap_is_the_design_number(self):
    self.assertAlmostEqual(
        power.smallest_detectable_gap(2706, 0.1), 0.01, places=5)
    self.assertEqual(power.items_to_bound_gap(0.01, 0.1), 2706)
    with_power = power.items_to_bound_gap(0.01, 0.1, power=0.8)
    self.assertAlmostEqual(with_power, 0.1 * (1.6449 + 0.8416)**2 / 1e-4, -1)

  def test_effective_items(self):
    rng = np.random.default_rng(0)
    same = np.repeat(rng.random(50) < 0.5, 4)
    own = rng.random(200) < 0.5
    self.assertLess(power.effective_items(same, ids.repeat(50, 4)), 55)
    self.assertGreater(power.effective_items(own, ids.repeat(50, 4)), 130)
    self.assertEqual(power.effective_items(np.ones(200), ids.repeat(50, 4)), 50)


def _readings(fp, nf4):
  """The quickstart's four readings, which each precision answers.

  Ignorance, its spread and the accuracies of the base are about those of its
  record. Precisions that are drawn apart pass less often than real ones.
  """
  guesses = {'alike': 0.6, 'spread': 0.2, 'probes': 2}
  return [reading for base in (fp, nf4) for reading in (
      power.Reading(forms=7, ignorance=0.26, base=base[0], **guesses),
      power.Reading(forms=5, sets=3, ignorance=0.38, own_ignorance=base[4],
                    base=base[1], **guesses),
      power.Reading(forms=3, ignorance=0.0, base=base[2]),
      power.Reading(forms=3, sets=3, ignorance=0.29, base=base[3], **guesses))]


_READINGS = _readings(fp=(0.96, 0.97, 1.0, 0.94, 0.51),
                      nf4=(0.85, 0.89, 0.67, 0.95, 0.45))
_UNSEEN = _READINGS[1]


class ForgettingVerdictsTest(parameterized.TestCase):

  def _verdicts(self, known, facts, readings, **options):
    return power.forgetting_verdicts(
        known, facts, readings, seed=0,
        **{'trials': 200, 'resamples': 200, **options})

  @parameterized.parameters((59, 150), (200, 30))
  @pytest.mark.slow
  @pytest.mark.long
  def test_ignorance_passes_and_a_fifth_known_fails(self, facts, trials):
    ignorant = self._verdicts(0.0, facts, _READINGS, trials=trials)
    self.assertGreaterEqual(ignorant['passed'], 0.8)
    self.assertEqual(ignorant['failed'], 0.0)
    fifth = self._verdicts(0.2, facts, _READINGS, trials=trials)
    self.assertGreaterEqual(fifth['failed'], 0.8)
    self.assertEqual(fifth['passed'], 0.0)

  @parameterized.named_parameters(('choice_unseen', 1), ('generation', 2))
  def test_a_fifth_known_in_one_reading_does_not_pass(self, number):
    rng, known = np.random.default_rng(0), (number, number + 4)
    for _ in range(15):
      knows = rng.permutation(59) < 12
      estimates = []
      for i, reading in enumerate(_READINGS):
        asked = power.answers(knows & (i in known), reading, rng)
        estimates.append(forgetting.forgetting(
            asked.base, asked.model, asked.ignorance, asked.fact, asked.form,
            level_of_all=intervals.bonferroni(len(_READINGS)), resamples=200))
      want = False if number == 2 else 'inconclusive'
      self.assertEqual(forgetting.judge(estimates), want)

  def test_at_the_threshold_errors_are_rare(self):
    got = self._verdicts(1 - forgetting.PHI, 59, _READINGS, trials=100)
    self.assertLessEqual(got['passed'], 0.05)
    self.assertLessEqual(got['failed'], 0.05)

  def test_shares_add_up_and_the_seed_decides(self):
    once, again = (
        self._verdicts(0.1, 30, (_UNSEEN,), trials=10) for _ in range(2))
    self.assertEqual(once, again)
    self.assertAlmostEqual(sum(once.values()), 1.0)

  def test_answers(self):
    rng = np.random.default_rng(0)
    reading = power.Reading(
        forms=2, sets=3, ignorance=0.25, base=0.9, alike=1.0)
    knows = np.arange(1000) < 300
    base, model, fact, form, levels = power.answers(knows, reading, rng)
    np.testing.assert_array_equal(levels, 0.25)
    np.testing.assert_array_equal(fact[:7], [0] * 6 + [1])
    np.testing.assert_array_equal(form[:6], [0, 0, 0, 1, 1, 1])
    known = knows[fact]
    np.testing.assert_array_equal(model[known], base[known])
    self.assertAlmostEqual(base.mean(), 0.9, delta=0.03)
    self.assertAlmostEqual(model[~known].mean(), 0.25, delta=0.05)
    sets = model.reshape(1000, 2, 3)
    self.assertTrue((sets == sets[..., :1]).all())  # All alike.
    self.assertTrue((sets[:, 0] != sets[:, 1]).any())

  def test_measured_ignorance_varies_between_facts(self):
    rng = np.random.default_rng(0)
    reading = power.Reading(
        forms=40, ignorance=0.3, base=0.9, spread=0.2, probes=2)
    found = power.answers(np.zeros(2000, bool), reading, rng)
    means = found.ignorance.reshape(2000, 40, 2).mean(1)
    np.testing.assert_allclose(means.mean(0), 0.3, atol=0.02)
    np.testing.assert_allclose(means.std(0), 0.2, atol=0.02)
    guessed = found.model.reshape(2000, 40).mean(1)
    self.assertGreater(np.corrcoef(guessed, means[:, 0])[0, 1], 0.8)

  def test_known_facts_are_counted_or_sampled(self):
    sure = power.Reading(forms=2, ignorance=0.0, base=1.0)
    fixed, sampled = (
        self._verdicts(0.12, 100, (sure,), trials=40, sampled=sampled,
                       threshold=0.9) for sampled in (False, True))
    self.assertEqual(fixed['passed'], 0.0)
    self.assertNotEqual(fixed, sampled)


class ErrorsTest(absltest.TestCase):

  def test_options(self):
    with self.assertRaisesRegex(ValueError, 'discordant=2'):
      power.smallest_detectable_gap(10, 2)
    with self.assertRaisesRegex(ValueError, 'gap to bound is 0'):
      power.items_to_bound_gap(0)

  def test_known_and_readings(self):
    with self.assertRaisesRegex(ValueError, 'known=2 and 0 readings'):
      power.forgetting_verdicts(2, 10, (), trials=1, seed=0)


if __name__ == '__main__':
  absltest.main()
