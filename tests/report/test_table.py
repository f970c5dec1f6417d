"""The table of several runs."""

import json
import pathlib
import tempfile

from absl.testing import absltest

from mansu_jax.report import table
from tests.report import former_records
from tests.report import pages
from tests.report import records


def _run(seed: int, heldout: float = 0.642, **circuit):
  record = records.make()
  record['config']['seed'] = seed
  record['config']['circuit'] = record['config']['circuit'] | circuit
  record['accuracy']['retain_heldout']['unlearned']['fp']['value'] = heldout
  return record


class CompareTest(absltest.TestCase):

  def _rows(self, *args, table_number=0):
    head, _, *rows = pages.pipe_tables(table.compare(*args))[table_number]
    return [dict(zip(head, row)) for row in rows]

  def test_seeds_share_a_row_for_each_quantizer(self):
    rows = self._rows([_run(0), _run(1, heldout=0.6)])
    self.assertEqual([(row['run'], row['quantizer'], row['seeds'])
                      for row in rows], [
        ('base', 'nf4', '2'), ('base', 'int4_g128', '2'),
        ('mansu', 'nf4', '2'), ('mansu', 'int4_g128', '2')])
    row = rows[2]
    self.assertEqual(row['held-out facts, fp / quantized'],
                     '0.621 [0.600, 0.642] / 0.611')
    self.assertEqual(row['weights moved'], '0.65 %')
    self.assertEqual(rows[3]['codes changed'], '0.48 %')
    self.assertEqual(row['perplexity ratio, fp / quantized'], '1.024 / 1.022')
    self.assertEqual(row['time'], '4 min 22 s')

  def test_readings_are_the_records(self):
    record = _run(0)
    rows = self._rows([record])
    for name in ('choice', 'choice_unseen', 'generation_few_shot', 'reverse'):
      for row in rows:
        model = 'base' if row['run'] == 'base' else 'unlearned'
        values = [record['forgetting'][name][model][p]['value']
                  for p in ('fp', row['quantizer'])]
        self.assertEqual(row[f'{name}, fp / quantized'],
                         ' / '.join(f'{value:.3f}' for value in values))

  def test_a_reading_that_no_run_has_is_no_column(self):
    record = _run(0)
    del record['forgetting']['reverse']
    self.assertNotIn('reverse, fp / quantized', self._rows([record])[0])
    row = self._rows([record, _run(1)])[2]
    self.assertEqual(row['reverse, fp / quantized'],
                     '0.451 (1 of 2 runs) / 0.443 (1 of 2 runs)')

  def test_the_worst_reading_gives_what_is_known(self):
    record = _run(0)
    known = 'known in the worst reading, fp / quantized'
    of = lambda: [row[known] for row in self._rows([record])]
    # Of the reverse question; of unseen choices where the base has no lead.
    self.assertEqual(of(), ['–', '–', '0.199 / 0.203', '0.199 / 0.102'])
    record['forgetting']['choice_same_subject']['known']['fp']['value'] = 0.9
    self.assertEqual(of()[2], '0.199 / 0.203')

  def test_one_seed_has_an_interval_and_several_have_a_range(self):
    other = _run(1)
    other['properties']['Q']['by_scheme']['nf4']['value'] = 0.0042
    self.assertEqual([row['brought back'] for row in self._rows([_run(0)])], [
        '–', '–', '-0.014 [-0.046, +0.017]', '+0.009 [-0.023, +0.040]'])
    self.assertEqual(
        [row['brought back'] for row in self._rows([_run(0), other])],
        ['–', '–', '-0.005 [-0.014, +0.004]', '+0.009'])

  def test_base_is_the_records(self):
    base = self._rows([_run(0), _run(0, budget=0.02)])[0]
    self.assertEqual(base['seeds'], '1')
    self.assertEqual(base['held-out facts, fp / quantized'], '0.731 / 0.702')
    self.assertEqual(base['perplexity ratio, fp / quantized'], '1.000 / 1.000')
    self.assertEqual((base['weights moved'], base['time']), ('0 %', '–'))

  def test_rows_are_named_by_the_flags_that_differ(self):
    rows = self._rows([_run(0), _run(0, selection='random', budget=0.02)])
    self.assertEqual(
        [row['run'] for row in rows[2:]],
        2 * ['--circuit_budget=0.01 --circuit_selection=attributed']
        + 2 * ['--circuit_budget=0.02 --circuit_selection=random'])

  def test_no_base_row_where_bases_differ(self):
    other = _run(0)
    other['model']['sha256'] = 'ff'
    rows = self._rows([_run(0), other], ['a', 'b'])
    self.assertEqual([row['run'] for row in rows], list('aabb'))

  def test_measured_in_some_runs_only(self):
    other = _run(1)
    del other['accuracy']['retain_heldout']
    row = self._rows([_run(0), other])[2]
    self.assertEqual(row['held-out facts, fp / quantized'],
                     '0.642 (1 of 2 runs) / 0.611 (1 of 2 runs)')

  def test_structure_is_the_records(self):
    rows = self._rows([_run(0)], table_number=1)
    self.assertEqual([row['hidden share, fp / quantized'] for row in rows], [
        '0.377 [0.286, 0.474] / 0.318 [0.227, 0.415]',
        '0.377 [0.286, 0.474] / 0.262 [0.171, 0.359]'])
    row = rows[0]
    self.assertEqual(row['worst attack'],
                     '+0.321 [+0.213, +0.429] (lora_3e-4, nf4)')
    self.assertEqual(row['CAD, fp / quantized'], '0.830 / not measured')
    self.assertEqual(row['CAD of random circuits, fp / quantized'],
                     '0.740 / not measured')
    self.assertEqual(row['readability, fp / quantized'], '0.064 / 0.031')
    self.assertEqual(row['S'], 'failed')

  def test_structure_over_seeds(self):
    other = _run(1)
    other['readability'] = {'reason': 'there are no questions'}
    other['cad'] = other['cad'] | {'value': 0.73}
    other['structure'] = {'reason': 'there are too few questions'}
    other['attack_verdict'] |= {'precision': 'fp', 'difference': {
        'value': 0.121, 'interval': [0.0, 0.2]}}
    other['properties']['S']['passed'] = 'inconclusive'
    row = self._rows([_run(0), other], table_number=1)[0]
    self.assertEqual(row['hidden share, fp / quantized'],
                     '0.377 (1 of 2 runs) / 0.318 (1 of 2 runs)')
    self.assertEqual(
        row['worst attack'],
        '+0.221 [+0.121, +0.321] (lora_3e-4, nf4; lora_3e-4, fp)')
    self.assertEqual(row['CAD, fp / quantized'],
                     '0.780 [0.730, 0.830] / not measured')
    self.assertEqual(row['readability, fp / quantized'],
                     '0.064 (1 of 2 runs) / 0.031 (1 of 2 runs)')
    self.assertEqual(row['S'], 'failed, inconclusive')

  def test_without_facts_never_known_the_gain_stands_alone(self):
    record = _run(0)
    record['attack_verdict'] |= {'gain_unknown': None, 'difference': None}
    self.assertEqual(
        self._rows([record], table_number=1)[0]['worst attack'],
        '+0.362 [+0.269, +0.455] (lora_3e-4, nf4, gain alone)')

  def test_no_structure_where_none_was_measured(self):
    self.assertLen(pages.pipe_tables(table.compare([records.bare() | {
        'readability': {}}])), 1)

  def test_a_former_record_has_fewer_columns(self):
    forgetting, structure = pages.pipe_tables(
        table.compare([former_records.make()]))
    self.assertNotIn('brought back', forgetting[0])
    self.assertIn('held-out facts, fp / quantized', forgetting[0])
    self.assertNotIn('worst attack', structure[0])
    self.assertIn('CAD, fp / quantized', structure[0])

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
