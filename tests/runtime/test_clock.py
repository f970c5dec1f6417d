"""Stages are timed, and traced on request."""

from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import progress
from tests.models import tiny


class ClockTest(absltest.TestCase):

  def test_stages_are_listed_in_order(self):
    clock = clock_lib.Clock()
    for name in ('one', 'two'):
      with clock.stage(name):
        pass
    self.assertEqual([s['name'] for s in clock.stages], ['one', 'two'])
    for stage in clock.stages:
      self.assertGreaterEqual(stage['seconds'], 0)
      self.assertGreater(stage['peak_bytes'], 2**20)

  def test_compile_time_is_separate(self):
    clock = clock_lib.Clock()
    program = jax.jit(lambda x: x * 3 + 1)
    for name in ('compiles', 'runs'):
      with clock.stage(name):
        program(np.ones(7))
    first, second = clock.stages
    self.assertBetween(first['compile_seconds'], 1e-4, first['seconds'])
    self.assertEqual(second['compile_seconds'], 0)

  def test_a_failed_stage_is_not_listed_as_done(self):
    clock = clock_lib.Clock()
    with self.assertRaises(KeyError):
      with clock.stage('one'):
        raise KeyError
    self.assertEmpty(clock.stages)

  def test_tokens_are_counted_by_stage(self):
    clock = clock_lib.Clock()
    for name, tokens in (('none', 0), ('some', 120)):
      with clock.stage(name):
        progress.count_tokens(tokens)
    none, some = clock.stages
    self.assertEqual((none['tokens'], none['tokens_per_second']), (0, None))
    self.assertEqual(some['tokens'], 120)
    self.assertAlmostEqual(some['tokens_per_second'] * (
        some['seconds'] - some['compile_seconds']), 120, places=3)

  def test_each_stage_has_a_trace_of_its_own(self):
    root, clock = tiny.temp_dir(self), clock_lib.Clock()
    with clock.stage('before'):
      pass
    clock.trace_to(root / 'profile')
    for name in ('one', 'other phrasings'):
      with clock.stage(name):
        jax.jit(lambda x: x + 1)(np.ones(3))
    found = {path.name: list(path.rglob('*.xplane.pb'))
             for path in (root / 'profile').iterdir()}
    self.assertEqual(set(found), {'one', 'other_phrasings'})
    self.assertTrue(all(found.values()))

  def test_a_trace_ends_with_a_stage_that_fails(self):
    root, clock = tiny.temp_dir(self), clock_lib.Clock()
    clock.trace_to(root)
    with self.assertRaises(KeyError):
      with clock.stage('fails'):
        raise KeyError
    with clock.stage('next'):  # A second running trace would be an error.
      pass
    self.assertLen(clock.stages, 1)

  def test_a_failed_trace_does_not_stop_the_run(self):
    root, clock = tiny.temp_dir(self), clock_lib.Clock()
    clock.trace_to(root)
    stop = jax.profiler.stop_trace

    def full():
      stop()
      raise OSError('disk full')

    with mock.patch.object(jax.profiler, 'stop_trace', full):
      with self.assertLogs(level='ERROR') as logs, clock.stage('one'):
        pass
    self.assertIn('The trace of one is not written: disk full', logs.output[0])
    self.assertLen(clock.stages, 1)


if __name__ == '__main__':
  absltest.main()
