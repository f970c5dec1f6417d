"""The section of the hidden share shows its figures, checks and chart."""

from absl.testing import absltest

from mansu_jax.report import document
from mansu_jax.report.sections import erasure
from mansu_jax.report.sections import hidden_share
from tests.report import records


def _share(value):
  return {'value': value, 'interval': [value - 0.1, value + 0.1],
          'block': value, 'early': 0.3, 'looks': 0.35, 'values': 0.4,
          'last_state': 0.2, 'own': -0.04,
          'reading': 'block' if value < 0.8 else 'after_2',
          'left': {'value': value, 'interval': [value - 0.05, value + 0.05]}}


def _structure():
  gate = {'value': 0.987, 'interval': [0.9, 1.0], 'level': 0.9, 'holds': True}
  return {
      'mover_layer': 2, 'by_layer': [1.0, 1.0, 0.95, 0.04], 'questions': 239,
      'facts': 59, 'answered': {'base': 0.979, 'guessed': 0.278},
      'hidden_share': {'fp': _share(0.812),
                       'nf4': _share(0.734)},
      'gates': {
          'sharp_mover': gate | {
              'value': 0.95, 'interval': [None, None], 'level': 0.8,
              'next_layer': 0.04, 'next_level': 0.2},
          'another_fact': gate | {'value': 0.131, 'level': 0.2},
          'noise': gate | {
              'holds': False, 'hidden_level': 0.2,
              'hidden': {'value': 0.314, 'interval': [0.25, 0.4]}},
          'retained': gate | {
              'value': None, 'interval': [None, None],
              'holds': 'inconclusive', 'reason': 'too few questions'}}}


class HiddenShareTest(absltest.TestCase):

  def _blocks(self, structure):
    return list(hidden_share.blocks({'structure': structure}))

  def test_shares_and_checks(self):
    text, shares, gates, plots = self._blocks(_structure())
    self.assertIn('if block 2 (counted from 0) is the base', text.text)
    self.assertEqual(shares.rows, (
        ('fp', '0.812 [0.712, 0.912]', 'after block 2', '0.812 [0.762, 0.862]',
         '-0.040',
         '0.812', '0.300', '0.350', '0.400', '0.200'),
        ('nf4', '0.734 [0.634, 0.834]', 'at the end', '0.734 [0.684, 0.784]',
         '-0.040', '0.734', '0.300', '0.350', '0.400', '0.200')))
    self.assertIn('239 forget questions about 59 facts', shares.caption)
    self.assertIn('0.979', shares.caption)
    self.assertEqual([row[1:] for row in gates.rows], [
        ('0.950, then 0.040', 'at least 0.8, then at most 0.2', 'yes'),
        ('0.131 [0.900, 1.000]', 'at most 0.2', 'yes'),
        ('0.987 [0.900, 1.000], hidden 0.314 [0.250, 0.400]',
         'at least 0.9, hidden not above 0.2', 'no'),
        ('not measured', 'at least 0.9', 'unknown: too few questions')])
    self.assertIn('<polyline', plots.items[0].svg)

  def test_what_was_not_measured(self):
    self.assertEmpty(self._blocks(None))
    block, = self._blocks({'reason': 'there is one fact'})
    self.assertEqual(block, document.Text(
        'The hidden share was not measured: there is one fact.'))

  def test_it_is_part_of_structural_erasure(self):
    record = records.make() | {'structure': _structure()}
    for block in self._blocks(_structure()):
      self.assertIn(block, erasure.section(record).blocks)


if __name__ == '__main__':
  absltest.main()
