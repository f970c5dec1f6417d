"""The environment of a run, as its record has it."""

import pathlib
import subprocess
from unittest import mock

from absl.testing import absltest

import mansu_jax
from mansu_jax.runtime import environment


class CommitTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir())
    (self.root / 'mansu_jax').mkdir()
    self.file = self.root / 'mansu_jax' / '__init__.py'
    self.file.write_text('')
    self.enterContext(mock.patch.object(mansu_jax, '__file__', str(self.file)))

  def _git(self, *command):
    return subprocess.run(
        ['git', '-c', 'user.name=a', '-c', 'user.email=a', '-C', self.root,
         *command], check=True, capture_output=True, text=True).stdout.strip()

  def test_commit_is_that_of_the_checkout(self):
    self.assertIsNone(environment.describe()['commit'])
    self._git('init')
    self.assertIsNone(environment.describe()['commit'])  # No commit yet.
    self._git('add', '.')
    self._git('commit', '-m', 'one')
    head = self._git('rev-parse', 'HEAD')
    self.assertEqual(environment.describe()['commit'], head)
    (self.root / 'untracked').write_text('')
    self.assertEqual(environment.describe()['commit'], head)
    self.file.write_text('changed = True')
    self.assertEqual(environment.describe()['commit'], f'{head}+changes')

  def test_no_commit_without_git(self):
    self._git('init')
    with mock.patch.dict('os.environ', PATH=''):
      self.assertIsNone(environment.describe()['commit'])


if __name__ == '__main__':
  absltest.main()
