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

  def test_equal_answers_still_have_an_interval(self):
    same = np.ones(40)
    found = _gain(same, same)
    self.assertEqual(found.value, 0)
    self.assertLess(found.lower, -0.05)

  def test_known(self):
    right = np.arange(40) < 22
    found = recovery.known(right, np.full(40, 0.1), _FACTS, **_OPTIONS)
    self.assertAlmostEqual(found.value, 0.5)
    self.assertBetween(0.5, found.lower, found.upper)
    none = recovery.known(
        np.zeros(40), np.full(40, 0.1), _FACTS, **_OPTIONS)
    self.assertGreater(none.upper, 0)


class ExcessTest(absltest.TestCase):

  def test_distances_to_the_bounds_add_up_in_squares(self):
    gained = _gain([0, 1] * 20, [1] * 40)
    gained = dataclasses.replace(
        gained, value=0.5, interval=(0.2, 0.6), lower=0.3, upper=0.55)
    guessed = dataclasses.replace(
        gained, value=0.1, interval=(0.0, 0.5), lower=0.05, upper=0.25)
    found = recovery.excess(gained, guessed)
    self.assertAlmostEqual(found.value, 0.4)
    self.assertAlmostEqual(found.lower, 0.4 - math.hypot(0.2, 0.15))
    self.assertAlmostEqual(found.upper, 0.4 + math.hypot(0.05, 0.05))
    self.assertAlmostEqual(found.interval[0], 0.4 - 0.5)
    self.assertAlmostEqual(found.interval[1], 0.4 + math.hypot(0.1, 0.1))

  def test_what_guessing_loses_does_not_count_as_returned(self):
    """No untaught answer changes, and facts never known are guessed worse."""
    same = np.arange(40) % 4 == 0
    kept, lost = _gain(same, same), _gain(same, np.zeros(40))
    self.assertLess(lost.upper, -0.1)
    found = recovery.excess(kept, lost)
    self.assertEqual(found.value, 0)
    self.assertLess(found.lower, 0)

  def test_bounds_cover_the_truth_as_often_as_they_say(self):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
      draw = lambda p: _gain(
          np.arange(40) % 4 == 0, np.repeat(rng.random(20) < p, 2))
      hits += recovery.excess(draw(0.6), draw(0.6)).lower > 0
    self.assertLess(hits, 20)  # 10 are expected; the true difference is 0.


if __name__ == '__main__':
  absltest.main()
