"""A run that is killed repeatedly ends as an uninterrupted run does.

Each run has its own process and its own cache of compiled programs: a process
that is killed while it writes to the cache may leave half a program.
"""

import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

from absl import logging
from absl.testing import absltest
import pytest

from tests import runs
from tests import tiny_job
from tests.models import tiny

_STEPS = 300  # Seconds of training: more to be killed in.
_AFTER = (  # What a process says it begins, before it is killed
    'load', 'attribution', 'references', 'fisher', *['unlearn'] * 5, 'export',
    'evaluate', 'erasure', 'survival')
_MOST_LINES = {'unlearn': 10}  # after at most so many more lines (else 2)
_SECONDS = 0.3  # and at most so long.
_SAME_FILES = ('model/model.safetensors', 'circuit.json', 'answers.jsonl',
               'flags.txt', 'hashes.json')


@pytest.mark.slow
class KillTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tiny.class_dir(cls)
    cls.flags = [*tiny_job.make(cls.folder / 'job'),
                 f'--unlearn_steps={_STEPS}', '--unlearn_save_every=7']
    cls.environment = os.environ | {
        'JAX_COMPILATION_CACHE_DIR': str(cls.folder / 'compiled'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1'}
    cls.whole = cls.folder / 'whole'
    cls.run_whole(cls.whole)

  @classmethod
  def start(cls, root, begins='load', lines=0):
    """A process some lines after a stage began, and its output so far."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'mansu_jax.main', *cls.flags,
         f'--workdir={root}'], env=cls.environment, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    said, left = [], None
    for line in process.stderr:
      said.append(line)
      left = lines if f'{begins} ...' in line else left and left - 1
      if left == 0:
        break
    return process, said

  @classmethod
  def run_whole(cls, root):
    """Runs it to its end."""
    process, said = cls.start(root)
    said += process.communicate()[1]
    if process.returncode:
      raise AssertionError(''.join(said))

  def interrupt(self, root, number, begins, lines=0, seconds=0.0):
    """Sends a signal, if the process still runs.

    Args:
      root: the workdir.
      number: of the signal.
      begins: the stage that it has begun,
      lines: that it has written since,
      seconds: that it has gone on then.

    Returns:
      The exit status, and what the process wrote.
    """
    process, said = self.start(root, begins, lines)
    try:
      said += process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
      process.send_signal(number)
      said += process.communicate()[1]
    return process.returncode, ''.join(said)

  def check_same(self, root):
    """All files of a run equal those of the uninterrupted run."""
    for name in _SAME_FILES:
      self.assertEqual(runs.sha256(root / name), runs.sha256(
          self.whole / name), name)
    record, whole = (json.loads((folder / 'record.json').read_text())
                     for folder in (root, self.whole))
    self.assertLen(record['history']['loss'], _STEPS)
    self.assertEqual(record['history'], whole['history'])
    self.assertEqual(runs.figures(record), runs.figures(whole))
    names = lambda folder: sorted(
        str(p.relative_to(folder)) for p in [
            *folder.glob('*'), *folder.glob('checkpoints/*')])
    self.assertEqual(names(root), names(self.whole))

  def test_killed_at_random_moments(self):
    rng, root = random.Random(0), self.folder / 'killed'
    stages, steps = collections.Counter(), []
    for begins in _AFTER:
      status = 0
      while status == 0:  # It was at its end too soon.
        status, said = self.interrupt(
            root, signal.SIGKILL, begins, rng.randrange(
                _MOST_LINES.get(begins, 2) + 1), rng.uniform(0, _SECONDS))
        self.assertIn(status, (0, -signal.SIGKILL), said)
        self.assertNotIn('damaged', said)
        stages[re.findall(r'(\w+) \.\.\.', said)[-1]] += status != 0
        steps += re.findall(r'resuming after step (\d+)', said)
    self.run_whole(root)
    self.check_same(root)
    logging.info('%d kills: %s; gone on after steps %s',
                 sum(stages.values()), dict(stages), steps)
    self.assertGreater(len(set(steps)), 2)

  def test_a_run_stopped_by_sigterm_resumes(self):
    root = self.folder / 'stopped'
    for begins, steps in ('references', 0), ('unlearn', 1):
      # After a line of steps; before the first, no state can be saved.
      status, said = self.interrupt(root, signal.SIGTERM, begins, lines=steps)
      self.assertEqual(status, 75, said)
      self.assertIn('stopped by SIGTERM; the same command resumes', said)
      self.assertEqual(bool(re.search(r'step \d+ is saved', said)), bool(steps))
      self.assertNotIn('Traceback', said)
    self.run_whole(root)
    self.check_same(root)

  @pytest.mark.long
  def test_two_interrupts_in_a_row(self):
    """The second ctrl-C arrives while the first one ends the run."""
    rng, root = random.Random(1), self.folder / 'twice'
    for begins in 'load', 'attribution', *['unlearn'] * 2, 'evaluate':
      process, said = self.start(root, begins)
      time.sleep(rng.uniform(0, _SECONDS))
      process.send_signal(signal.SIGINT)
      time.sleep(rng.uniform(0, _SECONDS))
      process.send_signal(signal.SIGINT)  # None, if it has ended.
      said = ''.join([*said, *process.communicate()[1:]])
      self.assertEqual(process.returncode, 75, said)
      self.assertEqual(said.count('stopped by SIGINT'), 1, said)
      self.assertNotIn('Traceback', said)
      self.assertNotIn('damaged', said)
      self.assertFalse((root / '.mansu_jax.lock').exists())
    self.run_whole(root)
    self.check_same(root)


if __name__ == '__main__':
  absltest.main()
