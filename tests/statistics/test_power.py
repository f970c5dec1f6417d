"""Detectable gaps and effective items."""

from absl.testing import absltest
import numpy as np

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


class ErrorsTest(absltest.TestCase):

  def test_options(self):
    with self.assertRaisesRegex(ValueError, 'discordant=2'):
      power.smallest_detectable_gap(10, 2)
    with self.assertRaisesRegex(ValueError, 'gap to bound is 0'):
      power.items_to_bound_gap(0)


if __name__ == '__main__':
  absltest.main()
