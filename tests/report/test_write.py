"""The report's files: complete, safe, and equal to the record."""

import json
import math
import re
from xml.etree import ElementTree

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import write
from tests.report import attribution_records
from tests.report import cases
from tests.report import former_records
from tests.report import pages
from tests.report import records

_VARIANTS = (('full', records.make), ('bare', records.bare),
             ('audit', records.audit), ('bare_audit', records.bare_audit),
             ('former', former_records.make),
             ('former_bare', former_records.bare),
             ('former_audit', former_records.audit))


class FilesTest(cases.ReportTest):

  @parameterized.named_parameters(*_VARIANTS)
  def test_record_is_strict_json_and_equal(self, make):
    text = (self.written(make()) / 'record.json').read_text(encoding='utf-8')
    refuse = lambda name: self.fail(f'{name} in record.json')
    self.assertEqual(json.loads(text, parse_constant=refuse),
                     json.loads(json.dumps(make())))

  def test_non_finite_values_are_null_and_listed(self):
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

  @parameterized.named_parameters(
      *_VARIANTS, ('nodes', attribution_records.nodes),
      ('edges', attribution_records.edges))
  def test_tables_and_plots_have_captions_that_are_sentences(self, make):
    report = write.make_report(write.as_json(make()))
    found = report.plots() + [
        block for section in report.sections for block in section.blocks
        if isinstance(block, document.Table)]
    self.assertNotEmpty(found)
    for block in found:
      self.assertRegex(block.caption, r'^[A-Za-z].*\w.*\.$')
    self.assertLen({plot.name for plot in report.plots()},
                   len(report.plots()))

  @parameterized.named_parameters(
      ('full', records.make), ('bare', records.bare),
      ('former', former_records.make))
  def test_the_model_has_a_card(self, make):
    root = self.written(make())
    self.assertFalse((root / 'model').exists())
    (root / 'model').mkdir()
    write.write(make(), root)
    card = (root / 'model' / 'README.md').read_text(encoding='utf-8')
    self.assertStartsWith(card, '---\ntags:\n- machine-unlearning\n- mansu\n')
    head, _, body = card.partition('\n---\n\n')
    self.assertNotIn('base_model', head)  # A path or a wheel is no hub id.
    report = (root / 'report.md').read_text(encoding='utf-8')
    self.assertStartsWith(body, report.split('\n## ')[0])
    for title in ('Four properties', 'Accuracy', 'Perplexity'):
      self.assertIn(f'\n## {title}', body)
    self.assertNotIn('plots/', card)
    self.assertNotIn('## Training', card)

  def test_the_card_names_a_base_on_the_hub(self):
    record = records.make()
    record['model'] |= {'kind': 'hub', 'name': 'org/model'}
    self.assertIn('\nbase_model: org/model\n---\n', write.model_card(record))

  def test_the_card_names_no_path(self):
    record = records.make()
    record['model'] |= {'kind': 'directory', 'name': '/home/me/models/mine'}
    card = write.model_card(record)
    self.assertIn(' on mine, seed', card)
    self.assertNotIn('/home', card)

  def test_the_command_renders_again(self):
    root, other = self.written(records.make()), self.written(records.bare())
    self.assertEqual(write.main(['write', str(root), str(other)]), 0)
    for name in ('record.json', 'report.md', 'report.html'):
      self.assertEqual((root / name).read_bytes(),
                       (other / name).read_bytes())
    self.assertEqual(write.main(['write', str(root / 'none')]), 2)
    self.assertEqual(write.main(['write']), 2)

  def test_rewriting_changes_nothing(self):
    root = self.written(records.make())
    before = {f: f.read_bytes() for f in root.rglob('*') if f.is_file()}
    write.write(json.loads((root / 'record.json').read_text()), root)
    self.assertEqual(
        before, {f: f.read_bytes() for f in root.rglob('*') if f.is_file()})


if __name__ == '__main__':
  absltest.main()
