"""The readings of forgetting show the record's figures."""

from absl.testing import absltest

from mansu_jax.report import document
from mansu_jax.report.sections import forgetting
from mansu_jax.report.sections import properties
from tests.report import cases
from tests.report import judged
from tests.report import records


def _figures(entry, sign=False):
  if entry['value'] is None:
    return 'not measured'
  form = '+.3f' if sign else '.3f'
  low, high = entry['interval']
  return f'{entry["value"]:{form}} [{low:{form}}, {high:{form}}]'


class ForgettingTest(cases.ReportTest):

  def test_every_row_is_the_records(self):
    record = records.make()
    rows = self.page(record).table('reading', 'precision', 'base')
    self.assertLen(rows, 5 * 3)
    names = {label: name for name, label in properties.READINGS.items()}
    for label, p, base, guessed, after, guess, known, avoided, n in rows:
      entry = record['forgetting'][names[label]]
      for model, shown in (('base', guessed), ('unlearned', guess)):
        self.assertEqual(shown, f'{entry["ignorance"][model][p]:.3f}')
      self.assertEqual(base, f'{entry["base"][p]["value"]:.3f}')
      self.assertEqual(after, _figures(entry['unlearned'][p]))
      self.assertEqual(known, _figures(entry['known'][p]))
      self.assertEqual(avoided, _figures(entry['avoided'][p], True)
                       if p in entry['avoided'] else 'no')
      self.assertEqual(n, str(entry['unlearned'][p]['n']))
    self.assertEqual([row[1] for row in rows[:3]], list(judged.PRECISIONS))

  def test_some_rows_are_avoided_and_some_not_defined(self):
    rows = self.page(records.make()).table('reading', 'precision', 'base')
    self.assertEqual([row[7] for row in rows if row[7] != 'no'],
                     ['-0.081 [-0.125, -0.037]'])
    self.assertEqual([row[:2] for row in rows if row[6] == 'not measured'],
                     [['reverse question', 'int4_g128']])

  def test_the_chart_has_a_row_for_each_reading(self):
    _, plots, _ = forgetting.section(records.make()).blocks
    plot, = plots.items
    for name in records.make()['forgetting']:
      self.assertIn(properties.READINGS[name], plot.svg)
    self.assertIn('by guessing', plot.svg)

  def test_what_was_not_measured_has_neither_table_nor_chart(self):
    block, = forgetting.section(records.bare()).blocks
    self.assertIsInstance(block, document.Text)
    self.assertStartsWith(block.text, 'Not measured: the forget set has no')


if __name__ == '__main__':
  absltest.main()
