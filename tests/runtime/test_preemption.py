"""Signals: where they interrupt, where they wait, and who hears them."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.runtime import preemption

_ROOT = pathlib.Path(__file__).parents[2]


def _tell(number=signal.SIGTERM):
  os.kill(os.getpid(), number)


def _run(code):
  """Exit status and standard error of a process that runs the code."""
  start = """
      import gc, os, signal, time
      from mansu_jax.runtime import preemption
      tell = lambda number: os.kill(os.getpid(), number)
      """
  done = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(start) + textwrap.dedent(code)],
      stderr=subprocess.PIPE, text=True, check=False, timeout=300)
  return done.returncode, done.stderr.splitlines()


class ProcessTest(parameterized.TestCase):
  """What ends a process, in one of its own."""

  @parameterized.parameters('SIGTERM', 'SIGINT')
  def test_while_it_starts_a_signal_ends_it_in_one_line(self, name):
    status, lines = _run(f"""
        preemption.install_handlers()
        with preemption.before_exit(lambda: os.write(2, b'cleared\\n')):
          tell(signal.{name})
        print('went on')
        """)
    self.assertEqual(status, 75)
    self.assertEqual(lines, [
        f'mansu_jax: stopped by {name}; nothing was to be saved yet: give the'
        ' same command again. Exit status 75.', 'cleared'])

  def test_a_second_ctrl_c_does_not_wait(self):
    status, lines = _run("""
        preemption.install_handlers()
        with preemption.stop_on_signals(then='the same command starts anew'):
          with preemption.deferred():
            tell(signal.SIGTERM)
            tell(signal.SIGTERM)  # Some launchers send it twice.
            os.write(2, b'the second\\n')
            tell(signal.SIGINT)
            os.write(2, b'the end\\n')
        """)
    self.assertEqual(status, 75)
    self.assertLen(lines, 3)
    self.assertRegex(lines[0], 'SIGTERM: stops as soon as its state')
    self.assertEqual(lines[1:], [
        'the second', 'mansu_jax: stopped by SIGINT; the same command starts'
        ' anew. Exit status 75.'])

  def test_a_second_ctrl_c_strikes_no_exception_that_unwinds(self):
    status, lines = _run("""
        preemption.install_handlers()
        with preemption.stop_on_signals():
          try:
            tell(signal.SIGINT)
          finally:
            tell(signal.SIGTERM)
            os.write(2, b'finishes\\n')
            tell(signal.SIGINT)
            os.write(2, b'the end\\n')
        """)
    self.assertEqual(status, 75)
    self.assertEqual(lines[0], 'finishes')
    self.assertLen(lines, 2)
    self.assertStartsWith(lines[1], 'mansu_jax: stopped by SIGINT;')

  def test_a_line_of_the_package_is_interrupted_not_what_it_calls(self):
    """Where JAX calls back, exceptions are dropped, or become others."""
    status, lines = _run("""
        exec(compile(
            'def flow():\\n  work()\\n  os.write(2, b"the next line\\\\n")',
            preemption._PACKAGE + 'flow.py', 'exec'))
        def on_collect(phase, info):
          if phase == 'start' and due:
            due.pop()
            tell(signal.SIGTERM)

        def work():
          due.append(True)
          gc.collect()
          os.write(2, b'goes on\\n')

        due = []
        gc.callbacks.append(on_collect)
        try:
          with preemption.stop_on_signals():
            flow()
        except preemption.Stopped as stopped:
          preemption.report_stop(str(stopped))
          os._exit(75)
        """)
    self.assertEqual(status, 75, lines)
    self.assertEqual(lines[0], 'goes on')
    self.assertLen(lines, 2)
    self.assertStartsWith(lines[1], 'mansu_jax: stopped by SIGTERM;')

  def test_what_is_deferred_just_then_is_not_interrupted(self):
    status, lines = _run("""
        class Telling:
          def __enter__(self):
            tell(signal.SIGTERM)
          def __exit__(self, *_):
            pass

        exec(compile(
            'def flow():\\n'
            '  with Telling(), preemption.deferred():\\n'
            '    os.write(2, b"first\\\\n")\\n'
            '    os.write(2, b"last\\\\n")\\n'
            '  os.write(2, b"behind\\\\n")', preemption._PACKAGE + 'flow.py',
            'exec'))
        try:
          with preemption.stop_on_signals():
            flow()
        except preemption.Stopped:
          os._exit(75)
        """)
    self.assertEqual((status, lines), (75, ['first', 'last']))

  def test_an_error_that_something_makes_of_it_is_still_a_stop(self):
    with self.assertRaisesRegex(preemption.Stopped, '^SIGTERM$'):
      with preemption.stop_on_signals():
        try:
          _tell()
        except preemption.Stopped as stopped:
          raise ValueError('Exception raised while comparing') from stopped
    with self.assertRaises(ValueError), preemption.stop_on_signals():
      with preemption.deferred():
        _tell()
        raise ValueError('of its own')

  @parameterized.parameters('SIGTERM', 'SIGINT')
  def test_when_it_leaves_its_status_stands(self, name):
    status, lines = _run(f"""
        preemption.install_handlers()
        preemption.exit_process(3, lambda: tell(signal.{name}))
        """)
    self.assertEqual((status, lines), (3, []))


class StartTest(parameterized.TestCase):
  """The program, before it has anything to save."""

  @parameterized.product(
      module=('mansu_jax', 'mansu_jax.main'), number=(
          signal.SIGTERM, signal.SIGINT), wait=(0.0, 0.05, 0.5))
  def test_a_signal_ends_it_in_one_line(self, module, number, wait):
    with tempfile.TemporaryDirectory() as folder:
      process = subprocess.Popen(
          [sys.executable, '-m', module, f'--workdir={folder}/run'], cwd=_ROOT,
          text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
      while not self._hears(process.pid):
        time.sleep(0.001)
      time.sleep(wait)
      process.send_signal(number)
      _, said = process.communicate(timeout=300)
      if process.returncode == 2:  # It was faster: there are no data.
        self.assertGreater(wait, 0)
        return
      self.assertEqual(process.returncode, 75, said)
      self.assertRegex(said, f'^mansu_jax: stopped by {number.name};'
                       '.*Exit status 75.\n$')
      self.assertEmpty(os.listdir(folder))

  def _hears(self, pid):
    """Whether a process has got past Python's own start."""
    status = pathlib.Path(f'/proc/{pid}/status')
    if not status.exists():
      self.skipTest('needs /proc')
    caught = re.search(r'SigCgt:\s*(\w+)', status.read_text())
    mask = int(caught[1], 16) if caught else 0
    return all(mask >> number - 1 & 1 for number in (
        signal.SIGTERM, signal.SIGINT))


class PreemptionTest(parameterized.TestCase):

  @parameterized.parameters((signal.SIGTERM, 'SIGTERM'),
                            (signal.SIGINT, 'SIGINT'))
  def test_a_signal_interrupts(self, number, name):
    with self.assertRaisesRegex(preemption.Stopped, f'^{name}$'):
      with preemption.stop_on_signals():
        _tell(number)
        self.fail('went on')

  def test_errors_that_are_passed_over_do_not_swallow_it(self):
    self.assertNotIsInstance(preemption.Stopped(), Exception)

  def test_deferred_it_is_asked_for_and_raised_at_the_end(self):
    reached = []
    with self.assertRaises(preemption.Stopped), preemption.stop_on_signals():
      with preemption.deferred():
        with preemption.deferred():
          self.assertFalse(preemption.stop_requested())
          _tell()
          self.assertTrue(preemption.stop_requested())
        reached.append('the end of the inner block')
      self.fail('went on')
    self.assertLen(reached, 1)

  def test_an_error_leaves_a_deferred_block_as_it_is(self):
    with preemption.stop_on_signals():
      with self.assertRaises(KeyError), preemption.deferred():
        _tell()
        raise KeyError
      with self.assertRaises(preemption.Stopped):
        preemption.check()

  def test_what_handled_signals_before_does_so_again(self):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with preemption.stop_on_signals():
      self.assertNotEqual(signal.getsignal(signal.SIGTERM), before[0])
      with preemption.deferred():
        try:
          _tell()
        finally:
          preemption._state.received = ''
    self.assertEqual(
        before, [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)])

  def test_nobody_is_told_who_does_not_listen(self):
    self.assertFalse(preemption.stop_requested())
    preemption.check()
    with preemption.deferred():
      pass

  def test_what_was_heard_is_forgotten_afterwards(self):
    with self.assertRaises(preemption.Stopped), preemption.stop_on_signals():
      _tell()
    self.assertFalse(preemption.stop_requested())

  def test_of_several_processes_all_stop_where_they_ask(self):
    told, reached = [], []

    def any_of(mine):
      told.append(mine)
      return mine or len(told) == 2

    with self.assertRaisesRegex(preemption.Stopped, 'another process'):
      with preemption.stop_on_signals(any_of):
        with preemption.deferred():
          preemption.check()
        reached.append('the end of the block')
        preemption.check()
        self.fail('went on')
    self.assertEqual(told, [False, False])
    with self.assertRaisesRegex(preemption.Stopped, '^SIGTERM$'):
      with preemption.stop_on_signals(any_of):
        _tell()
        with preemption.deferred():
          pass
        reached.append('what comes after the signal')
        preemption.check()
    self.assertEqual((told[2:], len(reached)), ([True], 2))
    preemption.check()  # Asks nobody.
    self.assertLen(told, 3)

  def test_a_signal_while_they_agree_waits_for_the_next_time(self):
    def any_of(mine):
      if not mine:
        _tell()
      return mine

    with self.assertRaises(preemption.Stopped):
      with preemption.stop_on_signals(any_of):
        self.assertFalse(preemption.stop_requested())
        preemption.check()

  def test_in_another_thread_nothing_is_done(self):
    done = []

    def listen():
      with preemption.stop_on_signals():
        done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    self.assertEqual(done, [signal.getsignal(signal.SIGTERM)])


if __name__ == '__main__':
  absltest.main()
