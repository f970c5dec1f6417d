"""Results do not depend on the number of devices."""

import subprocess
import sys

from absl.testing import absltest
import pytest


class ShardingTest(absltest.TestCase):

  @pytest.mark.slow
  def test_equal_on_four_devices(self):
    done = subprocess.run(
        [sys.executable, '-m', 'tests.transforms.sharded_floor'],
        capture_output=True, text=True, check=False)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertRegex(
        done.stdout, '[1-9][0-9]* weights moved, equal on 4 devices')


if __name__ == '__main__':
  absltest.main()
