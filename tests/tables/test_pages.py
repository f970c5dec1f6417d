"""The tables in the pages are those of the stored records."""

import contextlib
import io
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from experiments.tables import __main__ as command
from experiments.tables import cells
from experiments.tables import pages
from experiments.tables import stored
from tests.tables import runs


def _tables(some):
  """Named cases of the tables in the pages whose name some() accepts."""
  return [(f'{page.stem}_{name}', page, name) for page in pages.pages()
          for name in pages.blocks(page.read_text(encoding='utf-8'))
          if some(name)]


class PagesTest(parameterized.TestCase):

  def _assert_of_the_records(self, page, name):
    found = pages.blocks(page.read_text(encoding='utf-8'))[name]
    self.assertEqual(
        found, pages.TABLES[name](stored.RESULTS),
        f'run `python -m experiments.tables --write {name}`')

  @parameterized.named_parameters(_tables(lambda name: name != 'test'))
  def test_tables_are_those_of_the_records(self, page, name):
    self._assert_of_the_records(page, name)

  @parameterized.named_parameters(_tables(lambda name: name == 'test'))
  @pytest.mark.slow  # Eighteen runs.
  def test_test_relations_are_those_of_the_records(self, page, name):
    self._assert_of_the_records(page, name)

  # The first table's runs are those of `premise`; the others are of one run.
  @parameterized.named_parameters(_tables(lambda name: name not in (
      'screen', 'first')))
  def test_the_runs_of_a_table_have_one_code_version(self, page, name):
    found = pages.blocks(page.read_text(encoding='utf-8'))[name]
    lines = [line for line in found.split('\n') if line.startswith('Code: ')]
    if found != cells.NOTHING:
      self.assertNotEmpty(lines)
    for line in lines:
      self.assertNotIn(',', line.partition(';')[0])

  def test_each_table_is_in_one_page(self):
    found = [name for page in pages.pages()
             for name in pages.blocks(page.read_text(encoding='utf-8'))]
    self.assertCountEqual(found, pages.TABLES)


class BlocksTest(absltest.TestCase):

  _PAGE = ('Before.\n\n<!-- table: first -->\n| old |\n<!-- end -->\n\n'
           '<!-- table: test -->\n\n| kept |\n<!-- end -->\nAfter.\n')

  def test_blocks_are_found(self):
    self.assertEqual(pages.blocks(self._PAGE),
                     {'first': '| old |', 'test': '| kept |'})

  def test_other_text_and_tables_stay(self):
    got = pages.replaced(self._PAGE, {'first': r'| \1 new |'})
    self.assertEqual(got, self._PAGE.replace('| old |', r'| \1 new |'))
    self.assertEqual(
        pages.replaced(got, {'first': '| old |'}), self._PAGE)

  def test_broken_pages_are_refused(self):
    for page, message in (
        (self._PAGE.replace('<!-- end -->\n\n', '\n'), 'wanted each once'),
        (self._PAGE.replace('test', 'first'), 'wanted each once'),
        (self._PAGE.replace('test', 'tests'), "tables .'tests'.; wanted some")):
      with self.assertRaisesRegex(ValueError, message):
        pages.blocks(page)


class CommandTest(runs.TestCase):

  def test_prints_the_named_tables(self):
    with contextlib.redirect_stdout(io.StringIO()) as out, mock.patch.object(
        stored, 'RESULTS', self.results):
      self.assertEqual(command.main(['test', 'premise']), 0)
    self.assertEqual(out.getvalue(), (
        f'test\n\n{cells.NOTHING}\n\npremise\n\n{cells.NOTHING}\n\n'))

  def test_writes_the_named_tables(self):
    for name in pages.PAGES:
      path = self.results / name
      path.parent.mkdir(exist_ok=True)
      path.write_text('<!-- table: test -->\nold\n<!-- end -->\n'
                      '<!-- table: first -->\nold\n<!-- end -->\n')
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(
        pages, 'ROOT', self.results), mock.patch.object(
            stored, 'RESULTS', self.results):
      self.assertEqual(command.main(['--write', 'test']), 0)
    for name in ('README.md', 'experiments/RESULTS.md'):
      self.assertEqual(
          pages.blocks((self.results / name).read_text()),
          {'test': cells.NOTHING, 'first': 'old'})

  def test_an_unknown_table_is_refused(self):
    with contextlib.redirect_stderr(io.StringIO()) as err:
      self.assertEqual(command.main(['other']), 2)
    self.assertIn('There is no table other; wanted some of', err.getvalue())


if __name__ == '__main__':
  absltest.main()
