"""A run gives the same on meshes, and its bits in one process or two."""

import json
import signal

from absl import logging
from absl.testing import absltest
import pytest

from mansu_jax.runtime import sharding
from tests import runs
from tests import tiny_job
from tests.mesh import launch
from tests.models import tiny

_BRIEF = ('--eval_cad_pairs=0', '--circuit_resamples=0')
_ALONE, _MESHES = '1,1,1', ('1,2,1', '1,4,1', '1,2,2', '2,2,2')


class TwoTest(absltest.TestCase):

  def _check(self, module, *args, says):
    for status, said in launch.start(module, *args, devices=2).end():
      self.assertEqual(status, 0, said[-3000:])
      self.assertIn(says, said)
    return said

  def test_collectives(self):
    self._check('tests.mesh.collectives', says='all equal')

  @pytest.mark.slow
  def test_scores_of_edges_and_calibrated_codes_are_the_same(self):
    """The rest of a first step is part of the whole jobs below."""
    said = self._check('tests.mesh.first_step', 'edges', 'gptq', says='equal')
    self.assertEqual(said.count('equal'), 1)  # The mesh of four devices.


@pytest.mark.long
@pytest.mark.slow
class JobTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = tiny.class_dir(cls)
    cls.flags = [*tiny_job.make(cls.root / 'job'), '--unlearn_steps=20',
                 '--unlearn_save_every=4']
    launch.alone(
        'tests.mesh.whole_job', cls.root, _ALONE, *_MESHES, *_BRIEF)
    cls.base = runs.tensors(cls.root / 'job' / 'model')

  def start(self, name, devices=1, mesh=(1, 2, 1), brief=()):
    """Two processes that unlearn into a folder."""
    return launch.start(
        'mansu_jax.main', *self.flags, *brief, '--mesh_distributed',
        f'--workdir={self.root / name}', *(
            f'--mesh_{axis}={size}' for axis, size in zip(
                sharding.AXES, mesh)), devices=devices, environment={
                    'JAX_COMPILATION_CACHE_DIR': str(self.root / 'compiled')})

  def check_end(self, job):
    """Checks that both succeed and only the primary one prints the outcome."""
    (status, said), (other, other_said) = job.end()
    self.assertEqual((status, other), (0, 0), said + other_said)
    self.assertIn('report.html', said)
    self.assertNotIn('report.html', other_said)
    return said

  def check_same(self, name, other, most=0.01):
    """Checks that two runs are the same but for a few bins; returns the first.

    Of the weights that move, at most the share `most` differ.
    """
    got, want = (json.loads((self.root / n / 'record.json').read_text())
                 for n in (name, other))
    now, weights = (
        runs.tensors(self.root / n / 'model') for n in (name, other))
    moved = sum(int((weights[k] != self.base[k]).sum()) for k in weights)
    self.assertGreater(moved, 1000)
    self.assertEqual(got['circuit']['nodes'], want['circuit']['nodes'])
    differ = sum(int((weights[k] != now[k]).sum()) for k in weights)
    logging.info(
        '%s: %d of %d weights differ from %s', name, differ, moved, other)
    self.assertLessEqual(differ, most * moved, name)
    for split, models in want['accuracy'].items():
      for model, precisions in models.items():
        for precision, entry in precisions.items():
          value = got['accuracy'][split][model][precision]['value']
          low, high = entry['interval']
          self.assertBetween(value, low, high, (name, split, model))
    return got

  def check_bits(self, name, other):
    """Checks for the bits of a run of one process on as many devices."""
    got = self.check_same(name, other, most=0)
    self.assertEqual(got['environment']['processes'], 2)
    self.assertEmpty([p for p in (self.root / name).rglob('.*')])

  def test_the_job_is_the_same_but_for_a_few_bins(self):
    for name in _MESHES:
      self.check_same(name, _ALONE)

  def test_on_two_devices_each(self):
    self.check_end(self.start('two each', 2, (1, 2, 2), _BRIEF))
    self.check_bits('two each', '1,2,2')

  def test_a_stopped_or_killed_run_resumes(self):
    name = 'stopped'  # On one device each; evaluates all.
    job = self.start(name)
    job.wait_for('unlearn ...')
    job.processes[1].send_signal(signal.SIGTERM)  # Not the primary one.
    for (status, said), by in zip(job.end(), ('another process', 'SIGTERM')):
      self.assertEqual(status, 75, said)
      self.assertRegex(said, f'stopped by .*{by}.* the same command resumes')
    job = self.start(name)
    job.wait_for('step 10/')
    job.processes[0].kill()  # The other one notices and ends.
    (first, said), (second, _) = job.end()
    self.assertEqual(first, -signal.SIGKILL, said)
    self.assertNotIn(second, (0, 75, -signal.SIGKILL))
    said = self.check_end(self.start(name))
    self.assertRegex(said, r'resuming after step \d')
    self.check_bits(name, '1,2,1')


if __name__ == '__main__':
  absltest.main()
