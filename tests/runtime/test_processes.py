"""A single process; tests/mesh has tests of several."""

import os
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from mansu_jax.runtime import processes


class AloneTest(parameterized.TestCase):

  def test_a_single_process_does_not_communicate(self):
    value = object()  # Not copied.
    self.assertIs(processes.broadcast_from_primary(lambda: value), value)
    self.assertIs(processes.raise_on_all(lambda: value), value)
    self.assertTrue(processes.is_primary())
    self.assertEqual([processes.any_true(x) for x in (True, False)],
                     [True, False])
    processes.abort(ValueError(), 2)  # Does not exit.

  @parameterized.parameters(
      ({}, 'the environment has none of them; wanted JAX_COORDINATOR_ADDRESS'),
      ({'JAX_COORDINATOR_ADDRESS': 'localhost:1'},
       'has JAX_COORDINATOR_ADDRESS=localhost:1; wanted'),
      ({'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES='two' is not a number"))
  def test_an_incomplete_environment_is_refused(self, given, message):
    status, said = self._join(given)
    self.assertEqual(status, 2, said)
    self.assertRegex(said, message)
    self.assertLen([x for x in said.splitlines() if 'mansu_jax' in x], 1)

  @pytest.mark.medium
  def test_it_logs_how_long_it_waits(self):
    status, said = self._join({
        'JAX_COORDINATOR_ADDRESS': 'localhost:1', 'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '1'})
    self.assertNotEqual(status, 0)
    self.assertIn('for at most --mesh_join_seconds=3', said)

  def _join(self, given):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(
        ('JAX_COORDINATOR', 'JAX_NUM', 'JAX_PROCESS'))}
    code = ('import sys; from mansu_jax import main; sys.argv ='
            ' ["mansu_jax", "--mesh_distributed", "--mesh_join_seconds=3"];'
            ' main.run()')
    done = subprocess.run(
        [sys.executable, '-c', code], env=clean | given, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout


if __name__ == '__main__':
  absltest.main()
