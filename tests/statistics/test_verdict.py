"""Verdicts of three states."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.statistics import verdict


class VerdictTest(parameterized.TestCase):

  @parameterized.parameters(
      ((1, 2), 0.5, True), ((1, 2), 2.5, False), ((1, 2), 1.5, 'inconclusive'),
      ((1, 2), 1, 'inconclusive'), ((1, 2), 2, 'inconclusive'))
  def test_above_and_below(self, bounds, level, want):
    self.assertEqual(verdict.above(bounds, level), want)
    mirrored = [-bounds[1], -bounds[0]]
    self.assertEqual(verdict.below(mirrored, -level), want)

  @parameterized.parameters(
      ((1, 2), 0.5, True), ((1, 2), 1, True), ((1, 2), 1.5, 'inconclusive'),
      ((1, 2), 2, 'inconclusive'), ((1, 2), 2.5, False),
      ((None, 2), 1, 'inconclusive'), ((None, 2), 3, False),
      ((1, None), 1, True), ((None, None), 0, 'inconclusive'))
  def test_at_least_and_at_most(self, bounds, level, want):
    self.assertEqual(verdict.at_least(bounds, level), want)
    negate = lambda x: None if x is None else -x
    mirrored = [negate(bounds[1]), negate(bounds[0])]
    self.assertEqual(verdict.at_most(mirrored, -level), want)

  @parameterized.parameters(
      ([True, True], True), ([], True), ([True, False], False),
      ([True, 'inconclusive'], 'inconclusive'),
      (['inconclusive', False, True], False))
  def test_all_of(self, verdicts, want):
    self.assertEqual(verdict.all_of(verdicts), want)

  @parameterized.parameters(
      (1.0, (0.5, 1.5), True), (3.0, (2.5, 3.5), False),
      (3.0, (1.5, 3.5), 'inconclusive'))
  def test_within_and_beyond(self, value, interval, want):
    found = {'value': value, 'interval': interval}
    self.assertEqual(verdict.within(found, 2.0), want)
    mirrored = {'value': -value, 'interval': (-interval[1], -interval[0])}
    self.assertEqual(verdict.beyond(mirrored, -2.0), want)

  def test_missing(self):
    got = verdict.missing('there are no questions', 0.9)
    self.assertEqual((got['passed'], got['threshold'], got['reason']),
                     ('inconclusive', 0.9, 'there are no questions'))
    self.assertIsNone(verdict.missing('x')['threshold'])


if __name__ == '__main__':
  absltest.main()
