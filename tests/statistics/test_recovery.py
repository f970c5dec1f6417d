"""Gains under attack, by hand."""

import dataclasses
import math

from absl.testing import absltest
import numpy as np

from mansu_jax.statistics import recovery

_FACTS = [f'f{i // 2}' for i in range(40)]
_OPTIONS = dict(resamples=500, seed=0)


def _answers(right, guessed=0.25):
  return recovery.Answers(np.asarray(right), np.full(len(right), guessed))


def _gain(before, after, guessed=(0.25, 0.25)):
  return recovery.gain(
      *map(_answers, (before, after), guessed), _FACTS, **_OPTIONS)


class GainTest(absltest.TestCase):

  def test_is_a_difference_of_known_shares(self):
    before, after = np.zeros(40), np.zeros(40)
    before[:16], after[:24] = 1, 1  # 0.4 and 0.6.
    found = _gain(before, after)
    self.assertAlmostEqual(found.value, 0.2 / 0.75)
    self.assertGreater(found.upper, found.value)
    self.assertLess(found.lower, found.value)

  def test_from_below_guessing_the_gain_counts_from_guessing(self):
    before, after = np.zeros(40), np.zeros(40)
    after[:12] = 1
    found = _gain(before, after)
    self.assertAlmostEqual(found.value, 0.05 / 0.75)
    self.assertLess(found.lower, 0)

  def test_better_guesses_are_no_gain(self):
    before, after = np.zeros(40), np.zeros(40)
    before[:10], after[:24] = 1, 1  # 0.25 and 0.6.
    found = _gain(before, after, (0.25, 0.6))
    self.assertAlmostEqual(found.value, 0)
    self.assertLess(found.lower, 0)

  def test_guesses_that_are_all_right_show_nothing(self):
    self.assertEqual(_gain(np.ones(40), np.ones(40), (1.0, 1.0)).value, 0)

  def test_a_gain_from_nothing(self):
    before, after = np.arange(40) < 16, np.arange(40) < 24
    facts = _FACTS[::-1]  # As the others, in another order.
    found = recovery.gain(_answers(before), _answers(after), facts,
                          from_nothing=True, **_OPTIONS)
    self.assertAlmostEqual(found.value, 0.35 / 0.75)

  def test_guesses_vary_with_the_facts(self):
    """Guesses of 0 and 1 widen the interval; equal ones do not."""
    before, after = np.arange(40) < 10, np.arange(40) < 24
    drawn = (np.arange(40) >= 30).astype(float)  # Where the answers are wrong.
    width = lambda guessed: np.ptp(recovery.gain(
        recovery.Answers(before, np.full(40, 0.25)), recovery.Answers(
            after, guessed), _FACTS, **_OPTIONS).interval)
    self.assertGreater(width(drawn), 1.2 * width(np.full(40, 0.25)))

  def test_share(self):
    answers = recovery.Answers(np.arange(40) < 22, np.tile([0.2, 0.0], 20))
    self.assertAlmostEqual(recovery.share(answers, _FACTS), 0.5)
    self.assertAlmostEqual(
        recovery.known(answers, _FACTS, **_OPTIONS).value, 0.5)

  def test_equal_answers_still_have_an_interval(self):
    same = np.ones(40)
    found = _gain(same, same)
    self.assertEqual(found.value, 0)
    self.assertLess(found.lower, -0.05)

  def test_known(self):
    right = np.arange(40) < 22
    found = recovery.known(_answers(right, 0.1), _FACTS, **_OPTIONS)
    self.assertAlmostEqual(found.value, 0.5)
    self.assertBetween(0.5, found.lower, found.upper)
    none = recovery.known(
        _answers(np.zeros(40), 0.1), _FACTS, **_OPTIONS)
    self.assertGreater(none.upper, 0)


class ExcessTest(absltest.TestCase):

  def test_distances_to_the_bounds_add_up_in_squares(self):
    gained = _gain([0, 1] * 20, [1] * 40)
    gained = dataclasses.replace(
        gained, value=0.5, interval=(0.2, 0.6), lower=0.3, upper=0.55)
    guessed = dataclasses.replace(
        gained, value=0.1, interval=(0.02, 0.5), lower=0.05, upper=0.25)
    found = recovery.excess(gained, guessed)
    self.assertAlmostEqual(found.value, 0.4)
    self.assertAlmostEqual(found.lower, 0.4 - math.hypot(0.2, 0.15))
    self.assertAlmostEqual(found.upper, 0.4 + math.hypot(0.05, 0.05))
    self.assertAlmostEqual(found.interval[0], 0.4 - 0.5)
    self.assertAlmostEqual(found.interval[1], 0.4 + math.hypot(0.1, 0.08))

  def test_a_control_that_may_gain_nothing_lowers_no_upper_bound(self):
    gained = _gain([0, 1] * 20, [1] * 40)
    control = dataclasses.replace(
        gained, value=0.1, interval=(-0.1, 0.3), lower=-0.05, upper=0.25)
    found = recovery.excess(gained, control)
    self.assertEqual(found.upper, gained.upper)
    self.assertLess(found.value, gained.value)

  def test_what_guessing_loses_does_not_count_as_returned(self):
    """No untaught answer changes, and facts never known are guessed worse."""
    same = np.arange(40) % 4 == 0
    kept, lost = _gain(same, same), _gain(same, np.zeros(40))
    self.assertLess(lost.upper, -0.1)
    found = recovery.excess(kept, lost)
    self.assertEqual(found.value, 0)
    self.assertLess(found.lower, 0)

  def test_bounds_cover_the_truth_as_often_as_they_say(self):
    """Guesses are drawn as well; nothing returns, then a fifth of the facts."""
    rng = np.random.default_rng(0)

    facts = [f'f{i // 2}' for i in range(60)]

    def attack(guess_before, guess_after, returned):
      draw = lambda p: np.repeat(rng.random(30) < p, 2)
      guesses = lambda p: (rng.random(60) < p).astype(float)
      return (recovery.Answers(draw(guess_before), guesses(guess_before)),
              recovery.Answers(draw(returned) | draw(guess_after),
                               guesses(guess_after)))

    def bounds(forget, unknown):
      """Lower bound, and upper bound where noise before it earns nothing."""
      nothing = recovery.known(forget[0], facts, **_OPTIONS).lower <= 0
      return [recovery.excess(*(
          recovery.gain(*answers, facts, from_nothing=x, **_OPTIONS)
          for answers in (forget, unknown))) for x in (
              recovery.share(forget[0], facts) <= 0, nothing)]

    for guesses in ((0.25, 0.25), (0.3, 0.5)):
      for returned in (0, 0.2):
        with self.subTest(guesses=guesses, returned=returned):
          found = [bounds(attack(*guesses, returned), attack(*guesses, 0))
                   for _ in range(150)]
          # 7.5 of 150 are expected, and more than 14 in 1 % of such tests.
          self.assertLessEqual(sum(x.lower > returned for x, _ in found), 14)
          self.assertLessEqual(sum(x.upper < returned for _, x in found), 14)


if __name__ == '__main__':
  absltest.main()
