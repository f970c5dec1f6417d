"""The package imports without the packages of its extras."""

import pathlib
import subprocess
import sys

from absl.testing import absltest

from mansu_jax.deployment import extras
from mansu_jax.deployment import schemes

_FOLDER = pathlib.Path(extras.__file__).parent
# Makes the import system find none of these packages.
_HIDE = '''
import importlib
from importlib import machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, *args: (
    None if name.partition('.')[0] in {absent} else find(name, *args))
assert all(importlib.util.find_spec(name) is None for name in {absent})
'''


class OptionalPackagesTest(absltest.TestCase):

  def test_every_module_imports_without_them(self):
    modules = [f'mansu_jax.deployment.{path.stem}'
               for path in sorted(_FOLDER.glob('*.py'))]
    absent = [name for names in extras.PACKAGES.values() for name in names]
    code = _HIDE.format(absent=absent) + '\n'.join(
        f'importlib.import_module({name!r})' for name in modules)
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True,
        check=False)
    self.assertEqual(done.returncode, 0, done.stderr)

  def test_schemes_need_the_extra_of_their_engine(self):
    self.assertEqual(schemes.extras(['nf4_bf16']), ['parity'])
    self.assertEqual(schemes.extras(['f32', 'q4_k']), ['llamacpp'])
    self.assertEqual(
        schemes.extras(schemes.DEFAULT), ['parity', 'llamacpp'])


if __name__ == '__main__':
  absltest.main()
