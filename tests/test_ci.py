"""The CI script runs what README.md promises a newcomer."""

import os
import pathlib
import re

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[1]


class CiTest(absltest.TestCase):

  def test_script_runs_the_second_command_of_the_readme(self):
    readme = (_ROOT / 'README.md').read_text(encoding='utf-8')
    commands = re.findall(r'```\w*\n(.*?)\n```', readme, re.DOTALL)
    lines = (_ROOT / '.ci' / 'run').read_text(encoding='utf-8').splitlines()
    self.assertIn('pytest', commands[1])
    self.assertIn(commands[1], lines)
    self.assertIn('set -euo pipefail', lines)

  def test_script_is_executable(self):
    self.assertTrue(os.access(_ROOT / '.ci' / 'run', os.X_OK))


if __name__ == '__main__':
  absltest.main()
