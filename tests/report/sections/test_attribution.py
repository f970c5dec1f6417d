"""The report of an attribution shows the record's figures."""

import json
import re
from xml.etree import ElementTree

from absl.testing import absltest
from absl.testing import parameterized

from tests.report import attribution_records
from tests.report import cases
from tests.report import pages
from tests.report import records

_VARIANTS = (('nodes', attribution_records.nodes),
             ('edges', attribution_records.edges),
             ('bare', attribution_records.bare))


class FilesTest(cases.ReportTest):

  @parameterized.named_parameters(*_VARIANTS)
  def test_record_page_and_plots(self, make):
    root = self.written(make())
    self.assertEqual(json.loads((root / 'record.json').read_text()),
                     json.loads(json.dumps(make())))
    page = (root / 'report.html').read_text(encoding='utf-8')
    pages.Page(page)  # It nests.
    self.assertEmpty(re.findall(
        r'https?://(?!www\.w3\.org/2000/svg")[^\s<]*', page))
    text = (root / 'report.md').read_text(encoding='utf-8')
    plots = sorted(f.name for f in (root / 'plots').iterdir())
    self.assertCountEqual(re.findall(r'\]\(plots/([^)]*)\)', text), plots)
    for name in plots:
      svg = (root / 'plots' / name).read_text(encoding='utf-8')
      ElementTree.fromstring(svg)
      self.assertIn(svg.strip(), page)
    for table in pages.pipe_tables(text):
      self.assertLen({len(row) for row in table}, 1)

  @parameterized.named_parameters(*_VARIANTS)
  def test_page_has_no_verdicts_and_no_none(self, make):
    page = self.page(make())
    self.assertNotRegex(page.text, r'\b(nan|None|inf)\b')
    self.assertNotIn('badge', [v for k, v in page.attributes if k == 'class'])
    for word in ('Four properties', 'Quantizers', 'Survival'):
      self.assertNotIn(word, page.text)


class ContentTest(cases.ReportTest):

  def test_table_shows_pairs_and_metrics(self):
    page = self.page(attribution_records.nodes())
    rows = dict(page.table('attribution'))
    self.assertEqual(rows['pairs answered'], '61 of 64')
    self.assertEqual(rows['mean metric, corrupted prompts'], '-8.65')
    self.assertIn('shipped:capitals_europe.jsonl', rows['pairs'])
    self.assertIn('The circuit of 1,111 neurons has a faithfulness of 0.97;'
                  ' random circuits of the same shape have a mean of 0.87 and a'
                  ' maximum of 0.91.', page.text)

  def test_where_pairs_are_from(self):
    record = attribution_records.nodes()
    record['config']['attribution']['pairs_file'] = 'mine.jsonl'
    self.assertEqual(dict(self.page(record).table('attribution'))['pairs'],
                     'mine.jsonl')
    del record['config']['attribution']['pairs_file']  # Before 0.3.
    for value, shown in (('pairs.jsonl', 'pairs.jsonl'),
                         ('64', 'made from the train questions of'
                          ' shipped:capitals_europe.jsonl')):
      record['config']['attribution']['pairs'] = value
      self.assertEqual(dict(self.page(record).table('attribution'))['pairs'],
                       shown)

  def test_circuits_of_both_kinds(self):
    rows = dict(self.page(attribution_records.nodes()).table('circuit'))
    self.assertEqual(rows['share of all weights'], '6 %')
    self.assertEqual(rows['faithfulness of the empty circuit'], '0.714')
    self.assertNotIn('edges', rows)
    page = self.page(attribution_records.edges())
    rows = dict(page.table('circuit'))
    self.assertIn('7 of 123,211', rows['edges'])
    self.assertIn('random circuits selected the same way have a mean of 0.01',
                  page.text)
    self.assertEqual(page.table('circuits selected from')[-1][0],
                     'random circuits selected the same way')
    self.assertNotIn('share of all weights', rows)
    self.assertNotIn('faithfulness of the empty circuit', rows)  # An old one.
    self.assertIn('The 4 edges of largest |score| among 7 edges are drawn',
                  page.text)

  def test_overlaps_stand_beside_chance(self):
    rows = self.page(attribution_records.nodes()).table(
        'circuits selected from')
    self.assertEqual([row[0] for row in rows], [
        'resampled facts', 'disjoint halves',
        'near phrasings (forget_paraphrase)',
        'random circuits of the same shape'])
    self.assertEqual(rows[1][1:], [
        '0.68 [0.63, 0.73]', '0.51 [0.46, 0.56]', '0.62 [0.57, 0.67]',
        '0.58 [0.53, 0.63]'])
    self.assertEqual(rows[3][1:], ['0.26 [0.25, 0.27]', '0.15 [0.14, 0.16]',
                                   '', ''])

  def test_faithfulness_on_other_pairs(self):
    rows = self.page(attribution_records.nodes()).table(
        'measured on', 'this circuit')
    self.assertEqual(rows, [
        ['its own pairs', '0.93 [0.90, 0.96]', '0.91 [0.87, 0.95]',
         'not measured', '16'],
        ['near phrasings (forget_paraphrase)', '0.88 [0.82, 0.94]',
         '0.90 [0.85, 0.95]', '0.78 [0.71, 0.85]', '17']])

  def test_missing_comparisons_state_a_reason(self):
    text = self.page(attribution_records.nodes()).text
    self.assertIn('Far phrasings (forget_far) were not compared: the model'
                  ' answers 2 pairs', text)
    self.assertIn('59 facts, drawn with replacement 100 times', text)
    self.assertIn('16 groups of 59 facts',
                  self.page(attribution_records.edges()).text)
    self.assertIn('Not measured: the pairs cover 3 facts',
                  self.page(attribution_records.bare()).text)

  def test_largest_scores(self):
    page = self.page(attribution_records.edges())
    self.assertEqual(page.table('edge', 'score'), [
        ['input->m0', '3', '100 %'], ['m0->a3.h2<q>', '-2', '90 %']])
    rows = self.page(attribution_records.bare()).table('edge', 'score')
    self.assertEqual(rows[0][2], 'not measured')

  def test_a_curve_is_shown_where_there_is_one(self):
    page = self.page(attribution_records.edges())
    self.assertIn('CPR is 0.912: the area under the curve', page.text)
    self.assertIn('CMD is 0.088: the area between', page.text)
    self.assertIn('Circuits that grow from the logits by the highest score at'
                  ' each size', page.text)
    rows = page.table('share', 'faithfulness')
    self.assertEqual(rows[2], ['0.01', '0.830', '0.030', '0.010', '0.050'])
    self.assertNotIn('CPR', self.page(attribution_records.nodes()).text)

  def test_a_curve_of_points_is_the_same(self):
    record = attribution_records.edges()
    lists = record['circuit']['curve']
    points = record['circuit']['curve'] = [
        {'share': share, 'faithfulness': value,
         'random': {'mean': mean, 'min': low, 'max': high}}
        for share, value, mean, low, high in zip(*lists.values())]
    want = self.page(attribution_records.edges())
    got = self.page(record)
    self.assertEqual(got.text, want.text)
    record['circuit']['selection'] = 'top'
    self.assertIn('Circuits of the highest scores at each size',
                  self.page(record).text)
    for point, same in zip(points, (2, 2, 1, 0, 2)):
      point |= {'size': int(1000 * point['share'])}
      point['random']['same'] = same
    self.assertIn('at the sizes (number of circuits) 1 (2) and 10 (1).',
                  self.page(record).text)
    points[2]['random'] = None  # None were measured.
    record['circuit']['random_curves'] = {'cpr': [0.1, 0.3], 'cmd': [0.9, 0.7]}
    record['circuit']['smallest_faithful_prefix'] = {
        'target': 0.8, 'edges': -1, 'candidates': 123211}
    got = self.page(record)
    self.assertEqual(got.table('share', 'faithfulness')[2][2:],
                     ['not measured'] * 3)
    self.assertIn('0.912 (random circuits 0.200)', got.text)
    self.assertIn('none: all 123,211 candidate edges', got.text)

  def test_random_circuits_that_are_the_circuit(self):
    for make in (records.make, records.audit):
      record = make()
      null = record['cad']['nulls']['random_circuits']
      for where in (record['circuit']['random'], null):
        where |= {'same': 3, 'warning': f'Three of {id(where)} are it.'}
      record['as_nc'] = None
      text = self.page(record).text
      for where in (record['circuit']['random'], null):
        self.assertIn(where['warning'], text)
      self.assertIn('; 3 of them identical to the circuit', text)

  def test_page_states_the_form_of_questions(self):
    record = records.make()
    self.assertIn('Questions were asked as plain text', self.page(record).text)
    record['tokenization'] |= {'chat': True, 'asked_as_written': 2}
    text = self.page(record).text
    self.assertIn('asked in chat form (--data_chat)', text)
    self.assertIn('2 questions already contained special tokens', text)

  def test_pairs_of_a_file_that_are_left_out(self):
    record = attribution_records.edges()
    record['circuit'] |= {'pairs_skipped': 4, 'pairs_as_ids': 7}
    self.assertIn('4 of the file dropped, because their prompts differ in token'
                  ' length; 7 of the file given as token ids',
                  self.page(record).text)

  def test_runs_that_unlearn_have_picture_and_stability(self):
    for make in (records.make, records.audit):
      record = make()
      self.assertNotIn('Stability of the circuit', self.page(record).text)
      nodes = attribution_records.nodes()['circuit']
      record['circuit'] |= {k: nodes[k] for k in ('summary', 'stability')}
      root = self.written(record)
      text = (root / 'report.md').read_text()
      self.assertIn('## Stability of the circuit', text)
      self.assertTrue((root / 'plots' / 'circuit.svg').exists())
      self.assertTrue((root / 'plots' / 'token_roles.svg').exists())
      self.assertFalse((root / 'plots' / 'circuit_neurons.svg').exists())


if __name__ == '__main__':
  absltest.main()
