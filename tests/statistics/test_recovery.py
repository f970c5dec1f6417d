"""Gains under attack, by hand."""

import dataclasses
import math

from absl.testing import absltest
import numpy as np

from mansu_jax.statistics import recovery

_FACTS = [f'f{i // 2}' for i in range(40)]
_OPTIONS = dict(resamples=500, seed=0)


class GainTest(absltest.TestCase):

  def test_from_above_chance_the_raw_gain(self):
    before, after = np.zeros(40), np.zeros(40)
    before[:12], after[:24] = 1, 1  # 0.3 and 0.6.
    found = recovery.gain(before, after, [0.25] * 40, _FACTS, **_OPTIONS)
    self.assertAlmostEqual(found.value, 0.3)
    self.assertGreater(found.lower, 0)

  def test_from_below_chance_the_gain_counts_from_chance(self):
    before, after = np.zeros(40), np.zeros(40)
    after[:12] = 1
    found = recovery.gain(before, after, [0.25] * 40, _FACTS, **_OPTIONS)
    self.assertAlmostEqual(found.value, 0.05)
    self.assertLess(found.lower, 0)

  def test_equal_answers_still_have_an_interval(self):
    same = np.ones(40)
    found = recovery.gain(same, same, [0.25] * 40, _FACTS, **_OPTIONS)
    self.assertEqual(found.value, 0)
    self.assertLess(found.lower, -0.05)


class ExcessTest(absltest.TestCase):

  def test_distances_to_the_bounds_add_up_in_squares(self):
    gained = recovery.gain(
        [0, 1] * 20, [1] * 40, [0.25] * 40, _FACTS, **_OPTIONS)
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
    kept = recovery.gain(same, same, [0.25] * 40, _FACTS, **_OPTIONS)
    lost = recovery.gain(
        same, np.zeros(40), [0.25] * 40, _FACTS, **_OPTIONS)
    self.assertLess(lost.upper, -0.1)
    found = recovery.excess(kept, lost)
    self.assertEqual(found.value, 0)
    self.assertLess(found.lower, 0)

  def test_bounds_cover_the_truth_as_often_as_they_say(self):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
      draw = lambda p: recovery.gain(
          np.ones(40) * (np.arange(40) % 4 == 0), np.repeat(
              rng.random(20) < p, 2), [0.25] * 40, _FACTS, **_OPTIONS)
      hits += recovery.excess(draw(0.6), draw(0.6)).lower > 0
    self.assertLess(hits, 20)  # 10 are expected; the true difference is 0.


if __name__ == '__main__':
  absltest.main()
