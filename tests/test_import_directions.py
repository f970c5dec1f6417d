"""Who may import whom, as in the layout table; read from the source alone."""

import ast
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).parents[1] / 'mansu_jax'
_FILES = sorted(_ROOT.rglob('*.py'))
_MOST_LINES = 400

# Room of the package -> rooms, or single modules, that it may import beside
# itself. `stages` stands for its rooms.
_FIRST = ('types', 'tree_paths', 'config', 'runtime')
_MODEL = (*_FIRST, 'quant', 'data', 'models')
_STAGES = (*_MODEL, 'circuits', 'statistics', 'erasure', 'transforms',
           'unlearn', 'eval')
_MAY_IMPORT = {
    'types': (),
    'tree_paths': (),
    'config': (),
    'statistics': (),
    'runtime': ('types', 'tree_paths', 'config'),
    'quant': ('runtime.memory',),
    'data': _FIRST,
    'models': (*_FIRST, 'quant', 'data'),
    'circuits': (*_MODEL, 'statistics'),
    'erasure': (*_MODEL, 'circuits', 'statistics'),
    'transforms': ('quant',),
    'unlearn': (*_FIRST, 'data', 'transforms'),
    'eval': (*_FIRST, 'data'),
    'attacks': (*_MODEL, 'circuits', 'statistics', 'unlearn', 'eval'),
    'report': ('runtime',),
    'planning': _FIRST,  # It is handed the stages' programs.
    # The glue between packages, a room a stage, in the order of a run.
    'stages': (),
    'stages.prepare': (*_STAGES, 'attacks'),
    'stages.circuit': (*_STAGES, 'stages.prepare'),
    'stages.train': (*_STAGES, 'stages.prepare', 'stages.circuit'),
    'stages.judge': (*_STAGES, 'attacks', 'stages.prepare', 'stages.circuit'),
    'stages.checks': (*_STAGES, 'stages.prepare', 'stages.circuit',
                      'stages.train'),
    'flows': (*_STAGES, 'stages', 'planning', 'report'),
    # Checks of exported models; a program of its own, which nothing imports.
    'deployment': (*_STAGES, 'attacks', 'stages', 'report'),
    # The report's summary is what it prints.
    'main': ('config', 'runtime', 'flows', 'report'),
    '__main__': ('runtime', 'main'),
}
_NOT_IN_THE_LIBRARY = ('chex', 'torch', 'bitsandbytes', 'accelerate',
                       'llama_cpp', 'matplotlib', 'pandas')
# Room -> packages of its extras, which only its functions import.
_OPTIONAL = {'deployment': ('torch', 'bitsandbytes', 'llama_cpp')}
_READ_FLAGS = ('config/flags.py', 'main.py', 'deployment/check.py',
               'deployment/relearn.py')


def _name(path):
  """`mansu_jax.data.splits` of a file."""
  parts = path.relative_to(_ROOT.parent).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


_MODULES = {_name(path): path for path in _FILES}


def _walk(node, functions):
  """All nodes below one; with or without the bodies of functions."""
  for child in ast.iter_child_nodes(node):
    if functions or not isinstance(child, ast.FunctionDef):
      yield child
      yield from _walk(child, functions)


def _imports(path, functions=True):
  """Full names of the modules that a file imports.

  Args:
    path: Python file.
    functions: Whether to include imports in the bodies of functions.
  """
  found = set()
  tree = ast.parse(path.read_text(encoding='utf-8'))
  for node in _walk(tree, functions):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        raise AssertionError(f'{path} has a relative import')
      for alias in node.names:  # A module, or a name in one.
        whole = f'{node.module}.{alias.name}'
        found.add(whole if whole in _MODULES else node.module)
  return found


def _ours(path):
  return {name for name in _imports(path)
          if name.split('.')[0] == _ROOT.name and name != _ROOT.name}


def _part(name):
  """`data` of `mansu_jax.data.splits`; `stages.train` of a module in it."""
  _, room, *rest = name.split('.')
  return '.'.join([room, *rest[:1]]) if room == 'stages' else room


def _rooms(part):
  """Rooms in which a room may import something."""
  rooms = {_part(f'{_ROOT.name}.{name}') for name in _MAY_IMPORT[part]}
  if 'stages' in rooms:
    rooms |= {room for room in _MAY_IMPORT if room.startswith('stages.')}
  return rooms - {part}


class ImportsTest(parameterized.TestCase):

  def test_every_part_has_its_row(self):
    parts = {_part(name) for name in _MODULES if name != _ROOT.name}
    self.assertContainsSubset(parts, _MAY_IMPORT)

  def test_the_table_has_no_circle(self):
    done = set()
    while len(done) < len(_MAY_IMPORT):
      ready = {part for part in _MAY_IMPORT if _rooms(part) <= done}
      self.assertNotEmpty(ready - done, f'circle beyond {sorted(done)}')
      done |= ready

  def test_the_package_itself_imports_none_of_its_parts(self):
    self.assertEmpty(_ours(_ROOT / '__init__.py'))

  @parameterized.named_parameters(
      (name.replace('.', '_'), name) for name in _MODULES
      if name != _ROOT.name)
  def test_direction(self, name):
    part = _part(name)
    allowed = {part, *_MAY_IMPORT[part]} | _rooms(part) & {
        room for room in _MAY_IMPORT if room.startswith('stages.')}
    for imported in _ours(_MODULES[name]):
      module = imported.removeprefix(f'{_ROOT.name}.')
      self.assertTrue(
          {_part(imported), module} & allowed, f'{name} imports {imported}')

  def test_modules_import_each_other_in_no_circle(self):
    graph = {name: _ours(path) & set(_MODULES) - {name}
             for name, path in _MODULES.items()}
    while True:
      leaves = {name for name, uses in graph.items() if not uses & set(graph)}
      if not leaves:
        break
      graph = {k: v for k, v in graph.items() if k not in leaves}
    self.assertEmpty(graph, 'modules in or above a circle')

  def test_library_imports_no_test_dependencies(self):
    for path in _FILES:
      room = path.relative_to(_ROOT).parts[0]
      for name in _imports(path):
        package = name.split('.')[0]
        if package not in _OPTIONAL.get(room, ()):
          self.assertNotIn(package, _NOT_IN_THE_LIBRARY, str(path))

  def test_optional_packages_are_imported_in_functions_only(self):
    for room, packages in _OPTIONAL.items():
      imported = set()
      for path in (_ROOT / room).rglob('*.py'):
        imported |= {name.split('.')[0] for name in _imports(path)}
        for name in _imports(path, functions=False):
          self.assertNotIn(name.split('.')[0], packages, str(path))
      self.assertContainsSubset(packages, imported)


class SourceTest(absltest.TestCase):

  def test_flags_are_read_in_two_files(self):
    readers = set()
    for path in _FILES:
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        name = getattr(node, 'attr', getattr(node, 'id', None))
        if name == 'FLAGS':
          readers.add(path.relative_to(_ROOT).as_posix())
    self.assertContainsSubset(readers, _READ_FLAGS)

  def test_no_name_hides_another(self):
    # A test class or method of a name that is taken would never run.
    for path in (*_FILES, *pathlib.Path(__file__).parent.rglob('*.py')):
      tree = ast.parse(path.read_text(encoding='utf-8'))
      for scope in (tree, *(
          n for n in ast.walk(tree) if isinstance(n, ast.ClassDef))):
        names = [n.name for n in scope.body if isinstance(
            n, (ast.ClassDef, ast.FunctionDef)) and not n.decorator_list]
        self.assertLen(set(names), len(names), f'{path} {sorted(names)}')

  def test_files_are_short(self):
    for path in (*_FILES, *pathlib.Path(__file__).parent.rglob('*.py')):
      lines = len(path.read_text(encoding='utf-8').splitlines())
      self.assertLessEqual(lines, _MOST_LINES, str(path))


if __name__ == '__main__':
  absltest.main()
