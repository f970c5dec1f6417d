"""Records of former versions still give a report."""

import json
import pathlib

from absl.testing import absltest

from mansu_jax.report import former_keys
from mansu_jax.report import write
from tests.report import attribution_records
from tests.report import cases
from tests.report import former_records
from tests.report import records

_RESULTS = pathlib.Path(__file__).parents[2] / 'experiments' / 'results'


class FormerKeysTest(cases.ReportTest):

  def test_todays_records_stay_the_same(self):
    for make in (records.make, records.bare, records.audit, records.bare_audit):
      self.assertEqual(former_keys.rename(make()), make())

  def test_older_keys_are_read(self):
    record = records.make()
    nodes = attribution_records.nodes()['circuit']
    record['circuit'] |= {k: nodes[k] for k in ('summary', 'stability')}
    new = write.make_report(write.as_json(record))
    circuit = record['circuit']
    circuit['picture'] = circuit.pop('summary')
    circuit['picture']['places'] = circuit['picture'].pop('token_roles')
    circuit['robustness'] = circuit.pop('stability')
    record['crossed_prompts'] = record.pop('swapped_prompts')
    self.assertEqual(write.make_report(write.as_json(record)), new)

  def test_former_properties_say_what_they_measured(self):
    page = self.page(former_records.make())
    for shown in (
        'A former version of mansu_jax judged this record, by other rules',
        'phi 0.931 [0.883, 0.979]',
        'inconclusive: the worst phrasing near_1 has phi 0.812 [0.714, 0.910]',
        'nf4 0.967 [0.920, 1.014], int4_g128 not measured',
        'accuracy drop +0.052 [+0.040, +0.064]',
        'retained and held-out facts, nf4: +0.018 [+0.004, +0.032]',
        'PTQ gap +0.009 [-0.013, +0.030] (int4_g128)',
        'nf4: -0.014 [-0.035, +0.007]', 'CAD 0.830 [0.740, 0.930]',
        'full precision: 3 of 5 checks passed, failed: CAD above random'
        ' circuits, inconclusive: AS-NC below base quantized',
        'nf4: 5 of 5 checks passed'):
      self.assertIn(shown, page.text)
    self.assertNotIn('hidden share 0', page.text)
    self.assertNotIn('knowledge brought back', page.text)

  def test_the_former_record_keeps_its_properties(self):
    record = former_records.make()
    root = self.written(record)
    self.assertEqual(json.loads((root / 'record.json').read_text()),
                     json.loads(json.dumps(record)))

  def test_sections_of_later_measures_are_left_out(self):
    titles = lambda record: [section.title for section in write.make_report(
        write.as_json(record)).sections]
    former, today = titles(former_records.make()), titles(records.make())
    self.assertEqual([title for title in today if title not in former],
                     ['Forgetting by reading', 'Attacks'])
    self.assertContainsSubset(former, today)

  def test_a_property_without_a_figure_gives_its_reason(self):
    page = self.page(former_records.bare())
    self.assertIn('inconclusive: there are no questions', page.text)
    self.assertNotRegex(page.text, r'\b(nan|None|inf)\b')

  def test_every_kept_record_gives_a_report(self):
    found = sorted(_RESULTS.rglob('record.json'))
    self.assertNotEmpty(found)
    for path in found:
      record = json.loads(path.read_text(encoding='utf-8'))
      self.assertNotEmpty(self.page(record).tables, path)


if __name__ == '__main__':
  absltest.main()
