"""Axes name round values."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.report.charts import drawing


class TicksTest(parameterized.TestCase):

  @parameterized.parameters(
      (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
      (-0.07, 0.09, 6, [-0.05, 0, 0.05]), (0, 130, 3, [0, 50, 100]),
      (1e-9, 3e-9, 2, [1e-9, 2e-9, 3e-9]))
  def test_are_round_and_inside(self, low, high, count, wanted):
    np.testing.assert_allclose(
        drawing.ticks(low, high, count), wanted, atol=1e-15)

  @parameterized.parameters(1e-8, 0.3, 1.0, 7e5)
  def test_any_range_has_some(self, high):
    got = drawing.ticks(0, high)
    self.assertBetween(len(got), 3, 8)
    self.assertLessEqual(max(got), high * (1 + 1e-6))

  def test_zero_has_no_sign(self):
    self.assertEqual(drawing.number(-0.0), '0')
    names = [drawing.number(v) for v in drawing.ticks(-0.1, 0.1)]
    self.assertNotIn('-0', names)


if __name__ == '__main__':
  absltest.main()
