"""Links, flags, names and tables of the documents are those of the code."""

import ast
import functools
import itertools
import pathlib
import re

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import flags as flags_lib
from tests import test_import_directions

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = {path.relative_to(_ROOT).as_posix(): path for path in (
    *(_ROOT / name for name in (
        'README.md', 'BUILD.md', 'CHANGELOG.md', 'experiments/RESULTS.md')),
    *sorted((_ROOT / 'docs').glob('*.md')))}
_MOST_LINES = 230  # Of README.md.
_OTHER_TOOLS = (  # Flags of pip, pytest, mkdocs, gcloud, srun, hf and absl.
    'no-deps', 'cache-clear', 'strict', 'zone', 'worker', 'command',
    'ntasks-per-node', 'gpus-per-node', 'kill-on-bad-exit', 'flagfile', 'help',
    'local-dir')
_FOLDERS_OF_SCRIPTS = ('experiments', 'mansu_jax/deployment', 'tests/models')
_FENCE = re.compile(r'^```\w*\n(.*?)^```', re.DOTALL | re.MULTILINE)
_LINK = re.compile(r'\[([^\]]*)\]\(([^)\s]+)\)')
_FLAG = re.compile(r'(?<![\w-])--(\w[\w-]*)([*{]?)')
_DOTTED = re.compile(r'(?<![.\w])(?:mansu_jax|experiments)(?:\.\w+)+')
_PATH = re.compile(r'(?:mansu_jax|experiments|tests|docs|colabs)/[\w./-]*\w')
_each_page = parameterized.named_parameters(
    (name.replace('/', '_').replace('.', '_'), name) for name in _PAGES)


@functools.cache
def _text(name: str) -> str:
  return _PAGES[name].read_text(encoding='utf-8')


@functools.cache
def _anchors(path: pathlib.Path) -> set[str]:
  """The anchors of a page's headings, as GitHub makes them."""
  text = _FENCE.sub('', path.read_text(encoding='utf-8'))
  slug = lambda title: re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
  return {slug(title) for title in re.findall(r'^#+ (.*)$', text, re.M)}


@functools.cache
def _defined(path: pathlib.Path) -> set[str]:
  """The names that a module defines or imports."""
  tree, names = ast.parse(path.read_text(encoding='utf-8')), set()
  for node in tree.body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      names.add(node.name)
    elif isinstance(node, ast.Assign):
      names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      names |= {alias.asname or alias.name for alias in node.names}
  return names


def _resolves(dotted: str) -> bool:
  """Whether a dotted name is a package, a module, or a name in one."""
  parts = dotted.split('.')
  folder = _ROOT.joinpath(*parts)
  if folder.is_dir() or folder.with_suffix('.py').is_file():
    return True
  parent = _ROOT.joinpath(*parts[:-1])
  files = (parent.with_suffix('.py'), parent / '__init__.py')
  return any(f.is_file() and parts[-1] in _defined(f) for f in files)


@functools.cache
def _known_flags() -> frozenset[str]:
  """Flags of the program, with `no` forms, of scripts, and of other tools."""
  values = flags.FlagValues()
  flags_lib.define(values)
  names = set(values) | {f'no{name}' for name in values if values[name].boolean}
  for path in itertools.chain(
      *((_ROOT / folder).rglob('*.py') for folder in _FOLDERS_OF_SCRIPTS)):
    source = path.read_text(encoding='utf-8')
    names |= set(re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source))
    names |= set(re.findall(r"\btext\('(\w+)'", source))
    names |= set(re.findall(r"'--(\w+)'", source))
  return frozenset(names | set(_OTHER_TOOLS))


class ReadmeTest(absltest.TestCase):

  def test_is_a_front_page(self):
    self.assertLessEqual(len(_text('README.md').splitlines()), _MOST_LINES)

  def test_begins_with_two_commands_of_one_line(self):
    for block in _FENCE.findall(_text('README.md'))[:2]:
      self.assertLen(block.splitlines(), 1)
      self.assertStartsWith(block, 'python3 -m venv ')


class PagesTest(parameterized.TestCase):

  @_each_page
  def test_links_resolve(self, name):
    page = _PAGES[name]
    for text, target in _LINK.findall(_FENCE.sub('', _text(name))):
      if '://' in target:
        continue
      path, _, anchor = target.partition('#')
      file = (page.parent / path).resolve() if path else page
      self.assertTrue(file.exists(), f'{target} of {name} does not exist')
      if anchor:
        self.assertIn(anchor, _anchors(file), f'{target} of {name}')
      symbol = re.fullmatch(r'`(\w+)`', text)
      if file.suffix == '.py' and symbol:
        self.assertIn(symbol[1], _defined(file), f'{target} of {name}')

  @_each_page
  def test_flags_exist(self, name):
    known = _known_flags()
    for flag, wildcard in _FLAG.findall(_text(name)):
      found = (any(k.startswith(flag) for k in known) if wildcard
               else flag in known)
      self.assertTrue(found, f'{name} mentions --{flag}, which does not exist')

  @_each_page
  def test_modules_and_paths_exist(self, name):
    text = _text(name)
    for dotted in _DOTTED.findall(text):
      self.assertTrue(_resolves(dotted), f'{name} mentions {dotted}')
    for short in re.findall(r'`((?:transforms|quant)\.\w+)`', text):
      self.assertTrue(_resolves(f'mansu_jax.{short}'),
                      f'{name} mentions {short}')
    for path in _PATH.findall(_LINK.sub('', text)):
      self.assertTrue((_ROOT / path).exists(), f'{name} mentions {path}')


class SiteTest(absltest.TestCase):

  def test_every_guide_is_in_the_navigation(self):
    config = (_ROOT / 'mkdocs.yml').read_text(encoding='utf-8')
    for page in (_ROOT / 'docs').glob('*.md'):
      self.assertIn(f': {page.name}\n', config)


class LayoutTest(absltest.TestCase):

  def test_the_table_is_the_one_that_is_enforced(self):
    short = {'FIRST': test_import_directions._FIRST,
             'MODEL': test_import_directions._MODEL,
             'STAGES': test_import_directions._STAGES, 'nothing': ()}
    layout = _text('BUILD.md').partition('## Layout')[2]
    rows = [row.strip('|').split('|')
            for row in re.findall(r'^\| `.*\|$', layout, re.M)]
    documented = {}
    for room, _, cell in rows:
      words = [word.strip(' `') for word in cell.split(',')]
      documented[room.strip(' `')] = set(itertools.chain.from_iterable(
          short.get(word, (word,)) for word in words))
    enforced = test_import_directions._MAY_IMPORT
    self.assertEqual(set(documented), set(enforced))
    for room, may in enforced.items():
      self.assertEqual(documented[room], set(may), room)


if __name__ == '__main__':
  absltest.main()
