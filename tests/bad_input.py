"""Shared base of tests of refused input: a tiny job and its checks."""

import contextlib
import functools
import io
import json
import os
import pathlib
import tempfile
from unittest import mock

from absl import flags
from absl.testing import parameterized

from mansu_jax import main
from mansu_jax.config import flags as flags_lib
from mansu_jax.models import assemble
from mansu_jax.stages.circuit import attribution
from tests import tiny_job


@functools.cache
def _job():
  """Folder and flags of the untrained tiny job; no case reaches training."""
  made = tempfile.TemporaryDirectory()
  folder = pathlib.Path(made.name)
  return made, folder, tiny_job.make(folder, train=False)


def status(args):
  """(status, stderr) of `main.main` on a command line."""
  values = flags.FlagValues()
  flags_lib.define(values)
  rest = values(['mansu_jax', *args])
  with _both_stderrs() as said:
    return main.main(rest, values), said()


@contextlib.contextmanager
def _both_stderrs():
  """Yields a function that returns the text written to stderr."""
  out, own = io.StringIO(), os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)  # The stop message goes to this descriptor.
    try:
      def said():
        file.seek(0)
        return out.getvalue() + file.read().decode()

      with contextlib.redirect_stderr(out):
        yield said
    finally:
      os.dup2(own, 2)
      os.close(own)


class Refusals(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    made = tempfile.TemporaryDirectory()
    self.addCleanup(made.cleanup)
    self.folder = pathlib.Path(made.name)
    self.workdir = self.folder / 'run'
    _, self.job, self.flags = _job()
    early = mock.patch.object(
        attribution, 'score', side_effect=AssertionError('work had started'))
    early.start()
    self.addCleanup(early.stop)

  def refused(self, *args, message, for_weights=False):
    """Runs the job with more flags; checks how it is refused.

    Args:
      *args: flags, of which the last of a name counts.
      message: regular expressions that the one message has, in order.
      for_weights: whether it takes the weights to see what is wrong.
    """
    unread = mock.patch.object(assemble, 'assemble', side_effect=AssertionError(
        'weights were read'))
    with contextlib.nullcontext() if for_weights else unread:
      code, text = status([*self.flags, f'--workdir={self.workdir}', *args])
    lines = [line for line in text.splitlines()
             if line.startswith('mansu_jax: ')]
    self.assertEqual(code, 2, text)
    self.assertLen(lines, 1)
    self.assertRegex(lines[0], '.*'.join(message))
    self.assertNotIn('Traceback', text)
    self.assertFalse((self.workdir / 'flags.txt').exists())

  def without(self, *names):
    """The job's flags without those of some names."""
    self.flags = [f for f in self.flags if f.split('=')[0] not in names]

  def data(self, role, lines):
    """Replaces the file of a role by these lines."""
    path = self.folder / f'{role}.jsonl'
    path.write_text('\n'.join(
        x if isinstance(x, str) else json.dumps(x) for x in lines))
    self.without(f'--data_{role}')
    return f'--data_{role}={path}'
