"""Figures as text."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.report import words


class WordsTest(parameterized.TestCase):

  @parameterized.parameters(
      (words.number(None), 'not measured'), (words.number(-0.0), '0.000'),
      (words.signed(0.0125, 2), '+0.01'), (words.percent(0.0), '0 %'),
      (words.percent(1e-9), '1e-07 %'), (words.percent(0.00651), '0.651 %'),
      (words.interval(None), 'no interval'),
      (words.interval([None, None]), 'no interval'),
      (words.interval([None, 0.5]), '[unbounded, 0.500]'),
      (words.estimate({'value': None, 'interval': [0, 1]}), 'not measured'),
      (words.duration(119.94), '119.9 s'), (words.duration(605), '10 min 05 s'),
      (words.size(None), 'not measured'), (words.size(1536), '1.5 KiB'),
      (words.size(3 * 2**40), '3072.0 GiB'), (words.listing([]), 'none'),
      (words.listing(['a']), 'a'), (words.listing('abc'), 'a, b and c'),
      (words.count(1, 'question'), '1 question'),
      (words.count(1200, 'fact'), '1,200 facts'))
  def test_figures_in_words(self, got, wanted):
    self.assertEqual(got, wanted)

  @parameterized.parameters((None, 1.0), (1.0, None), (1.0, 0.0))
  def test_no_ratio_without_both(self, above, below):
    self.assertIsNone(words.ratio(above, below))


if __name__ == '__main__':
  absltest.main()
