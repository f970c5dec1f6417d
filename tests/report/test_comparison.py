"""The page of a comparison: what it draws, and where figures are missing."""

from absl.testing import absltest

from mansu_jax.report import comparison
from mansu_jax.report import markdown
from mansu_jax.report import page
from mansu_jax.report import table
from mansu_jax.report import write
from tests.models import tiny
from tests.report import records


def _record(lost=0.1, attack=(0.2, 0.5)):
  record = records.make()
  for precision, entry in record['accuracy']['retain_heldout'][
      'unlearned'].items():
    base = record['accuracy']['retain_heldout']['base'][precision]
    entry['value'] = base['value'] - lost
  record['attacks'] = {'lora_1e-4': {'fp': [
      {'step': step, 'value': value} for step, value in enumerate(attack)]}}
  return record


def _report(by_method, notes=(), found=None):
  runs = [(name, one) for name, own in by_method.items() for one in own]
  names, every = zip(*runs)
  return comparison.make_report(
      by_method, table.tables(every, names), notes,
      found and comparison.differences(found, 'mansu'))


def _plots(report):
  return {plot.name: plot.svg for plot in report.plots()}


class ComparisonTest(absltest.TestCase):

  def test_points_are_means_over_seeds(self):
    runs = [_record(lost=0.1), _record(lost=0.3)]
    found = comparison._point(runs, 'nf4')
    self.assertAlmostEqual(found.x, 0.2)
    self.assertAlmostEqual(found.y, table.known(runs[0], 'nf4'))
    del runs[1]['accuracy']['retain_heldout']
    self.assertIsNone(comparison._point(runs, 'nf4'))

  def test_models_that_collapsed_are_labelled_and_not_drawn(self):
    there, gone = _record(), _record(lost=0.9)
    report = _report({
        'mansu': [there], 'npo': [there, gone], 'rmu': [gone, gone]})
    chart = _plots(report)['frontier']
    self.assertNotIn('rmu', chart)
    self.assertEqual(
        chart.count('<title>mansu, nf4'), chart.count('<title>npo, nf4'))
    text = markdown.render(report)
    self.assertIn('| npo, 1 of 2 collapsed |', text)
    self.assertIn('| rmu, collapsed |', text)
    self.assertIn('| mansu |', text)

  def test_page(self):
    found = {'npo': {'held-out facts': {
        'value': -0.1, 'interval': [-0.2, -0.05], 'p_value': 0.01,
        'p_adjusted': 0.01, 'by_seed': [-0.1]}}}
    report = _report(
        {'mansu': [_record(), _record(attack=(0.4, 0.7))], 'npo': [_record()],
         'rmu': []}, ['rmu, seed 0, has no row: it diverged'], found)
    plots = _plots(report)
    self.assertEqual([*plots], ['frontier', 'relearning_lora_1e-4_fp'])
    self.assertIn('<title>mansu, nf4</title>', plots['frontier'])
    self.assertNotIn('rmu', plots['frontier'])
    self.assertEqual(
        [section.title for section in report.sections],
        ['Forgetting against retention', 'Relearning',
         'Differences from mansu', 'What went wrong'])
    text = markdown.render(report)
    self.assertIn('3 methods, 3 finished runs.', text)
    self.assertIn('-0.100 [-0.200, -0.050] \\*', text)
    self.assertIn('it diverged', text)

  def test_a_method_has_one_colour_in_all_charts(self):
    missing = _record()
    missing['forgetting'] = {}  # No point, but curves.
    plots = _plots(_report({'mansu': [missing], 'npo': [_record()]}))
    for chart in plots.values():
      self.assertIn('line c1"', chart)
    self.assertNotIn('line c0"', plots['frontier'])

  def test_examples_are_no_steps(self):
    record = _record()
    record['attacks'] = {'few_shot': record['attacks']['lora_1e-4']}
    chart = _plots(_report({'mansu': [record]}))['relearning_few_shot_fp']
    self.assertIn('>example<', chart)

  def test_more_methods_than_colours(self):
    plots = _plots(_report({f'm{i}': [_record()] for i in range(12)}))
    for i in range(12):
      self.assertIn(f'<title>m{i}, nf4</title>', plots['frontier'])
      self.assertIn(f'>m{i}<', plots['relearning_lora_1e-4_fp'])

  def test_what_was_not_measured_is_left_out(self):
    record = _record()
    record['attacks'] = None
    record['forgetting'] = {}
    report = _report({'mansu': [record]})
    self.assertEmpty(report.plots())
    self.assertLen(report.sections, 1)

  def test_files(self):
    root = tiny.temp_dir(self)
    report = _report({'mansu': [_record()]})
    write.write_report(report, root)
    self.assertEqual((root / 'report.html').read_text(), page.render(report))
    self.assertIn('(plots/frontier.svg)', (root / 'report.md').read_text())
    self.assertTrue((root / 'plots' / 'frontier.svg').is_file())


if __name__ == '__main__':
  absltest.main()
