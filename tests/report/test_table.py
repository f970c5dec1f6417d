"""The table of several runs."""

import json
import pathlib
import tempfile

from absl.testing import absltest

from mansu_jax.report import table
from tests.report import pages
from tests.report import records


def _run(seed: int, retain: float = 0.874, **circuit):
  record = records.make()
  record['config']['seed'] = seed
  record['config']['circuit'] = record['config']['circuit'] | circuit
  record['accuracy']['retain']['unlearned']['fp']['value'] = retain
  return record


class CompareTest(absltest.TestCase):

  def _rows(self, *args):
    head, _, *rows = pages.pipe_tables(table.compare(*args))[0]
    return [dict(zip(head, row)) for row in rows]

  def test_seeds_share_a_row(self):
    base, row = self._rows([_run(0), _run(1, retain=0.8)])
    self.assertEqual(base['run'], 'base')
    self.assertEqual(row['run'], 'mansu')
    self.assertEqual(row['seeds'], '2')
    self.assertEqual(row['retain, fp / quantized'],
                     '0.837 [0.800, 0.874] / 0.861')
    self.assertEqual(row['forget_far, fp / quantized'], 'not measured')
    self.assertEqual(row['PTQ gap'], '-0.014')
    self.assertEqual(row['base-adjusted gap'], '+0.029')
    self.assertEqual(row['weights moved'], '0.65 %')
    self.assertEqual(row['perplexity ratio, fp / quantized'], '1.024 / 1.022')
    self.assertEqual(row['time'], '4 min 22 s')

  def test_base_is_the_records(self):
    base = self._rows([_run(0), _run(0, budget=0.02)])[0]
    self.assertEqual(base['seeds'], '1')
    self.assertEqual(base['retain, fp / quantized'], '0.888 / 0.820')
    self.assertEqual(base['PTQ gap'], '-0.043')

  def test_rows_are_named_by_the_flags_that_differ(self):
    rows = self._rows([_run(0), _run(0, selection='random', budget=0.02)])
    self.assertEqual(
        [row['run'] for row in rows[1:]],
        ['--circuit_budget=0.01 --circuit_selection=attributed',
         '--circuit_budget=0.02 --circuit_selection=random'])

  def test_no_base_row_where_bases_differ(self):
    other = _run(0)
    other['model']['sha256'] = 'ff'
    rows = self._rows([_run(0), other], ['a', 'b'])
    self.assertEqual([row['run'] for row in rows], ['a', 'b'])

  def test_measured_in_some_runs_only(self):
    other = _run(1)
    del other['accuracy']['retain']
    row = self._rows([_run(0), other])[1]
    self.assertEqual(row['retain, fp / quantized'],
                     '0.874 (1 of 2 runs) / 0.861 (1 of 2 runs)')

  def test_structure_is_beside_its_nulls(self):
    other = _run(1)
    other['readability'] = {'reason': 'there are no questions'}
    other['cad'] = other['cad'] | {'value': 0.73}
    names, _, row = pages.pipe_tables(table.compare([_run(0), other]))[1]
    row = dict(zip(names, row))
    self.assertEqual(row['CAD, fp / quantized'],
                     '0.780 [0.730, 0.830] / not measured')
    self.assertEqual(row['CAD of random circuits'], '0.740')
    self.assertEqual(row['CAD of the suppression control'], 'not measured')
    self.assertEqual(row['readability, fp / quantized'],
                     '0.064 (1 of 2 runs) / 0.031 (1 of 2 runs)')
    self.assertEqual(row['readability of the suppression control'],
                     '0.993 (1 of 2 runs)')
    self.assertEqual(row['S'], 'failed')

  def test_no_structure_where_none_was_measured(self):
    record = _run(0)
    record |= {'cad': {}, 'readability': {}}
    self.assertLen(pages.pipe_tables(table.compare([record])), 1)

  def test_refuses_one_name_for_two_settings(self):
    with self.assertRaisesRegex(ValueError, 'circuit_budget=0.02'):
      table.compare([_run(0), _run(0, budget=0.02)], ['x', 'x'])
    with self.assertRaisesRegex(ValueError, 'no records'):
      table.compare([])

  def test_command_reads_workdirs(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'record.json').write_text(json.dumps(records.make()))
    self.assertEqual(table.read(str(folder))['config']['seed'], 0)
    self.assertEqual(table.main(['table', f'best={folder}']), 0)
    self.assertEqual(table.main(['table', str(folder / 'none')]), 2)
    self.assertEqual(table.main(['table']), 2)
    (folder / 'record.json').write_text('{}')
    with self.assertRaisesRegex(ValueError, 'no accuracy'):
      table.read(str(folder))


if __name__ == '__main__':
  absltest.main()
