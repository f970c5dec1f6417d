"""The notebook: stripped, thin, and it runs."""

import ast
import os
import pathlib
import tempfile

from absl.testing import absltest
import pytest

nbformat = pytest.importorskip('nbformat', reason='nbformat is not installed')

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_NOTEBOOK = _ROOT / 'colabs' / 'quickstart.ipynb'
_MOST_LINES = 10  # Of a cell.
_LOGIC = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While,
          ast.Try, ast.ListComp, ast.DictComp, ast.GeneratorExp)
_TIMEOUT = 600  # Seconds for one cell.


def _read():
  return nbformat.read(_NOTEBOOK, as_version=4)


def _code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def _plain(source: str) -> str:
  """The cell with shell and magic lines replaced by `pass`."""
  lines = []
  for line in source.splitlines():
    indent = line[:len(line) - len(line.lstrip())]
    magic = line.lstrip().startswith(('%', '!'))
    lines.append(f'{indent}pass' if magic else line)
  return '\n'.join(lines)


class FormTest(absltest.TestCase):

  def test_is_valid_and_stripped(self):
    notebook = _read()
    nbformat.validate(notebook)
    for cell in _code(notebook):
      self.assertEmpty(cell.outputs)
      self.assertIsNone(cell.execution_count)

  def test_has_no_logic_of_its_own(self):
    for cell in _code(_read()):
      self.assertLessEqual(len(cell.source.splitlines()), _MOST_LINES)
      nodes = list(ast.walk(ast.parse(_plain(cell.source))))
      self.assertEmpty([n for n in nodes if isinstance(n, _LOGIC)])

  def test_installs_only_where_it_is_missing(self):
    for cell in _code(_read()):
      for line in cell.source.splitlines():
        if 'pip install' in line or 'git clone' in line:
          self.assertStartsWith(line, '  ')  # Under a condition.

  def test_names_no_machine_and_its_flagfile_is_there(self):
    notebook = _read()
    text = _NOTEBOOK.read_text(encoding='utf-8')
    for word in ('/home/', '/root/', '/work/', '/tmp/', 'localhost'):
      self.assertNotIn(word, text)
    names = {}
    first, = (cell for cell in _code(notebook)
              if 'parameters' in cell.metadata.get('tags', []))
    exec(first.source, names)  # pylint: disable=exec-used
    self.assertTrue((_NOTEBOOK.parent / names['FLAGFILE']).is_file())


@pytest.mark.slow
class RunTest(absltest.TestCase):

  def test_runs_headless(self):
    nbclient = pytest.importorskip(
        'nbclient', reason='nbclient is not installed')
    pytest.importorskip('ipykernel', reason='ipykernel is not installed')
    from tests import tiny_job  # Needs tokenizers; trains a small model.
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    flagfile = folder / 'tiny.flags'
    flagfile.write_text('\n'.join(tiny_job.make(folder / 'job')) + '\n')
    notebook = _with_parameters(_read(), flagfile, folder / 'run')
    path = os.pathsep.join(filter(None, [
        str(_ROOT), os.environ.get('PYTHONPATH')]))
    client = nbclient.NotebookClient(
        notebook, timeout=_TIMEOUT, kernel_name='python3',
        resources={'metadata': {'path': str(_NOTEBOOK.parent)}})
    client.execute(env=os.environ | {
        'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'})
    printed = {cell.id: cell.outputs for cell in _code(notebook)}
    verdict = ''.join(o.get('text', '') for o in printed['verdict'])
    self.assertRegex(verdict, '^(PASSED|FAILED|INCONCLUSIVE): mansu on')
    for name in ('accuracy', 'gap'):
      self.assertIn('image/svg+xml', printed[name][0].data)
    self.assertTrue((folder / 'run' / 'report.html').is_file())
    self.assertFalse([o for o in printed['install'] if o])


def _with_parameters(notebook, flagfile, workdir):
  """The notebook with its parameters set after their cell."""
  at = next(i for i, cell in enumerate(notebook.cells)
            if 'parameters' in cell.metadata.get('tags', []))
  notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(
      f'FLAGFILE = {str(flagfile)!r}\nWORKDIR = {str(workdir)!r}'))
  return notebook


if __name__ == '__main__':
  absltest.main()
