"""Areas by hand, curves of stub circuits, and the size that meets a target."""

import operator

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.circuits import curve

_SIZES = [int(share * 1000) for share in curve.SHARES]


def _trace(value_of, count=1000, randoms=0, draw=lambda size: size):
  """The curve of circuits that are their sizes."""
  return curve.trace(curve.Prefixes(
      unit='nodes', count=count, first=lambda size: size, draw=draw,
      same=operator.eq), value_of, randoms)


class AreaTest(absltest.TestCase):

  def test_constants(self):
    width = 0.999  # Below 0.1 % nothing counts.
    for value in (0.0, 0.25, 1.0, 1.5):
      values = [value] * 10
      self.assertAlmostEqual(curve.cpr(values), value * width)
      self.assertAlmostEqual(curve.cmd(values), abs(1 - value) * width)

  def test_one_point_by_hand(self):
    # A triangle of height 1 from 20 % over 50 % to 100 %.
    values = np.eye(10)[8]
    self.assertAlmostEqual(curve.cpr(values), (0.3 + 0.5) / 2)
    self.assertAlmostEqual(curve.cmd(values), 0.999 - (0.3 + 0.5) / 2)

  def test_area_is_over_the_share_not_its_logarithm(self):
    self.assertAlmostEqual(
        curve.cpr(curve.SHARES), (1 - 0.001**2) / 2)

  def test_cmd_counts_values_above_1_as_distance(self):
    above, below = (np.full(10, 1 + x) for x in (0.3, -0.3))
    self.assertAlmostEqual(curve.cmd(above), curve.cmd(below))


class TraceTest(absltest.TestCase):

  def test_sizes_and_areas(self):
    got = _trace(lambda size: size / 1000)
    self.assertEqual([p['size'] for p in got['curve']], _SIZES)
    self.assertEqual([p['share'] for p in got['curve']], [*curve.SHARES])
    self.assertAlmostEqual(got['cpr'], (1 - 0.001**2) / 2)
    self.assertAlmostEqual(got['cpr'] + got['cmd'], 0.999)
    self.assertIsNone(got['curve'][0]['random'])
    self.assertEqual(got['random_curves'], {'cpr': [], 'cmd': []})

  def test_the_band_of_random_circuits(self):
    drawn = iter([1, 2, 3] * 10)
    got = _trace(float, randoms=3, draw=lambda size: next(drawn))
    for point in got['curve']:
      self.assertEqual(point['random'], {
          'min': 1, 'mean': 2, 'max': 3, 'same': int(point['size'] in (1, 2))})
      self.assertEqual(point['faithfulness'], point['size'])
    np.testing.assert_allclose(
        got['random_curves']['cpr'], np.array([1, 2, 3]) * 0.999)
    np.testing.assert_allclose(
        got['random_curves']['cmd'], np.array([0, 1, 2]) * 0.999)

  def test_trace_of_few_candidates(self):
    got = _trace(float, count=110)
    self.assertEqual(
        [p['size'] for p in got['curve']], [0, 0, 0, 1, 2, 5, 11, 22, 55, 110])


class ReachTest(parameterized.TestCase):

  @parameterized.parameters(1, 9, 10, 11, 333, 1000)
  def test_bisect_finds_a_step(self, at):
    value_at = lambda size: float(size >= at)
    low, high = curve.bracket(_trace(value_at)['curve'], 1.0)
    self.assertLess(low, at)
    self.assertLessEqual(at, high)
    got = curve.bisect(value_at, 1.0, low, high)
    self.assertBetween(got, at, at + max(1, got // 45))

  def test_bracket_and_bisect_find_the_first_of_two_crossings(self):
    value_at = lambda size: float(15 <= size < 40 or size > 400)
    points = _trace(value_at)['curve']
    self.assertEqual(curve.bracket(points, 0.5), (10, 20))
    self.assertEqual(curve.bisect(value_at, 0.5, 10, 20), 15)

  def test_a_target_that_is_not_reached(self):
    self.assertIsNone(curve.bracket(_trace(lambda size: 0.7)['curve'], 0.8))

  @parameterized.parameters(0, 1, 2, 7, 8, 9, 700, 1000)
  def test_smallest_finds_a_step(self, at):
    got = curve.smallest(lambda size: float(size >= at), 1.0, 1000)
    self.assertBetween(got, at, at + max(0, got // 45))

  def test_smallest_finds_a_narrow_peak(self):
    value_at = lambda size: float(5 <= size < 40)  # All of them miss it.
    self.assertEqual(curve.smallest(value_at, 0.5, 1000), 5)
    self.assertEqual(curve.smallest(lambda size: 1.0 - size, 0.5, 1000), 0)

  @parameterized.parameters(0, 1, 1000)
  def test_smallest_is_minus_1_if_no_size_reaches_the_target(self, most):
    self.assertEqual(curve.smallest(lambda size: 0.7, 0.8, most), -1)

  def test_measured_points_replace_the_search(self):
    tried = []
    value_at = lambda size: tried.append(size) or float(size >= 33)
    points = [{'size': size, 'faithfulness': float(size >= 33)}
              for size in (0, 30, 40, 1000)]
    self.assertEqual(curve.smallest(value_at, 1.0, 1000, points), 33)
    self.assertBetween(min(tried), 31, 33)
    self.assertLess(max(tried), 40)
    self.assertEqual(curve.smallest(value_at, 2.0, 1000, points), -1)

  def test_smallest_tries_no_size_beyond_the_first_success(self):
    tried = []
    value_at = lambda size: tried.append(size) or float(size >= 3)
    self.assertEqual(curve.smallest(value_at, 1.0, 1000), 3)
    self.assertEqual(tried, [0, 1, 2, 4, 3])


if __name__ == '__main__':
  absltest.main()
