"""Signals: where they stop a run, and where the stop is deferred."""

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


def _send(number=signal.SIGTERM):
  os.kill(os.getpid(), number)


def _run(code):
  """Exit status and standard error of a process that runs the code."""
  start = """
      import gc, os, signal, time
      from mansu_jax.runtime import preemption
      send = lambda number: os.kill(os.getpid(), number)
      """
  done = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(start) + textwrap.dedent(code)],
      stderr=subprocess.PIPE, text=True, check=False, timeout=300)
  return done.returncode, done.stderr.splitlines()


class ProcessTest(parameterized.TestCase):
  """Cases that end the process, each in a process of its own."""

  @parameterized.parameters('SIGTERM', 'SIGINT')
  def test_a_signal_during_the_start_ends_the_process(self, name):
    status, lines = _run(f"""
        preemption.install_handlers()
        with preemption.before_exit(lambda: os.write(2, b'cleared\\n')):
          send(signal.{name})
        print('went on')
        """)
    self.assertEqual(status, 75)
    self.assertEqual(lines, [
        f'mansu_jax: stopped by {name}; no state was saved; the same command'
        ' starts from the beginning. Exit status 75.', 'cleared'])

  def test_a_second_ctrl_c_does_not_wait(self):
    status, lines = _run("""
        preemption.install_handlers()
        with preemption.stop_on_signals(then='the same command starts anew'):
          with preemption.deferred():
            send(signal.SIGTERM)
            send(signal.SIGTERM)  # Some launchers send it twice.
            os.write(2, b'the second\\n')
            send(signal.SIGINT)
            os.write(2, b'the end\\n')
        """)
    self.assertEqual(status, 75)
    self.assertLen(lines, 3)
    self.assertRegex(lines[0], 'SIGTERM: stops as soon as its state')
    self.assertEqual(lines[1:], [
        'the second', 'mansu_jax: stopped by SIGINT; the same command starts'
        ' anew. Exit status 75.'])

  def test_a_second_ctrl_c_ends_the_process_while_it_unwinds(self):
    status, lines = _run("""
        preemption.install_handlers()
        with preemption.stop_on_signals():
          try:
            send(signal.SIGINT)
          finally:
            send(signal.SIGTERM)
            os.write(2, b'finishes\\n')
            send(signal.SIGINT)
            os.write(2, b'the end\\n')
        """)
    self.assertEqual(status, 75)
    self.assertEqual(lines[0], 'finishes')
    self.assertLen(lines, 2)
    self.assertStartsWith(lines[1], 'mansu_jax: stopped by SIGINT;')

  def test_stopped_is_raised_by_a_line_of_the_package(self):
    """Not within its callees: JAX drops or converts exceptions there."""
    status, lines = _run("""
        exec(compile(
            'def flow():\\n  work()\\n  os.write(2, b"the next line\\\\n")',
            preemption._PACKAGE + 'flow.py', 'exec'))
        def on_collect(phase, info):
          if phase == 'start' and due:
            due.pop()
            send(signal.SIGTERM)

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

  def test_a_deferred_block_that_starts_then_is_not_interrupted(self):
    status, lines = _run("""
        class SendingContext:
          def __enter__(self):
            send(signal.SIGTERM)
          def __exit__(self, *_):
            pass

        exec(compile(
            'def flow():\\n'
            '  with SendingContext(), preemption.deferred():\\n'
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

  def test_a_converted_stop_is_still_a_stop(self):
    with self.assertRaisesRegex(preemption.Stopped, '^SIGTERM$'):
      with preemption.stop_on_signals():
        try:
          _send()
        except preemption.Stopped as stopped:
          raise ValueError('Exception raised while comparing') from stopped
    with self.assertRaises(ValueError), preemption.stop_on_signals():
      with preemption.deferred():
        _send()
        raise ValueError('of its own')

  @parameterized.parameters('SIGTERM', 'SIGINT')
  def test_a_signal_after_exit_process_keeps_the_status(self, name):
    status, lines = _run(f"""
        preemption.install_handlers()
        preemption.exit_process(3, lambda: send(signal.{name}))
        """)
    self.assertEqual((status, lines), (3, []))


class StartTest(parameterized.TestCase):
  """The program, before it has state to save."""

  @parameterized.product(
      module=('mansu_jax', 'mansu_jax.main'), number=(
          signal.SIGTERM, signal.SIGINT), wait=(0.0, 0.05, 0.5))
  def test_a_signal_ends_it_in_one_line(self, module, number, wait):
    with tempfile.TemporaryDirectory() as folder:
      process = subprocess.Popen(
          [sys.executable, '-m', module, f'--workdir={folder}/run'], cwd=_ROOT,
          text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
      while not self._handles_signals(process.pid):
        time.sleep(0.001)
      time.sleep(wait)
      process.send_signal(number)
      _, said = process.communicate(timeout=300)
      if process.returncode == 2:  # It ended first: it has no data.
        self.assertGreater(wait, 0)
        return
      self.assertEqual(process.returncode, 75, said)
      self.assertRegex(said, f'^mansu_jax: stopped by {number.name};'
                       '.*Exit status 75.\n$')
      self.assertEmpty(os.listdir(folder))

  def _handles_signals(self, pid):
    """Whether the process has installed its signal handlers."""
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
        _send(number)
        self.fail('went on')

  def test_handlers_of_errors_do_not_catch_it(self):
    self.assertNotIsInstance(preemption.Stopped(), Exception)

  def test_a_deferred_stop_is_raised_at_the_end_of_the_block(self):
    reached = []
    with self.assertRaises(preemption.Stopped), preemption.stop_on_signals():
      with preemption.deferred():
        with preemption.deferred():
          self.assertFalse(preemption.stop_requested())
          _send()
          self.assertTrue(preemption.stop_requested())
        reached.append('the end of the inner block')
      self.fail('went on')
    self.assertLen(reached, 1)

  def test_a_deferred_stop_does_not_replace_an_error(self):
    with preemption.stop_on_signals():
      with self.assertRaises(KeyError), preemption.deferred():
        _send()
        raise KeyError
      with self.assertRaises(preemption.Stopped):
        preemption.check()

  def test_the_previous_handlers_are_restored(self):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with preemption.stop_on_signals():
      self.assertNotEqual(signal.getsignal(signal.SIGTERM), before[0])
      with preemption.deferred():
        try:
          _send()
        finally:
          preemption._state.received = ''
    self.assertEqual(
        before, [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)])

  def test_nothing_happens_outside_of_the_block(self):
    self.assertFalse(preemption.stop_requested())
    preemption.check()
    with preemption.deferred():
      pass

  def test_a_signal_is_forgotten_after_the_block(self):
    with self.assertRaises(preemption.Stopped), preemption.stop_on_signals():
      _send()
    self.assertFalse(preemption.stop_requested())

  def test_several_processes_stop_together(self):
    given, reached = [], []

    def any_of(mine):
      given.append(mine)
      return mine or len(given) == 2

    with self.assertRaisesRegex(preemption.Stopped, 'another process'):
      with preemption.stop_on_signals(any_of):
        with preemption.deferred():
          preemption.check()
        reached.append('the end of the block')
        preemption.check()
        self.fail('went on')
    self.assertEqual(given, [False, False])
    with self.assertRaisesRegex(preemption.Stopped, '^SIGTERM$'):
      with preemption.stop_on_signals(any_of):
        _send()
        with preemption.deferred():
          pass
        reached.append('what comes after the signal')
        preemption.check()
    self.assertEqual((given[2:], len(reached)), ([True], 2))
    preemption.check()  # Does not communicate.
    self.assertLen(given, 3)

  def test_a_signal_during_a_collective_stops_at_the_next_one(self):
    def any_of(mine):
      if not mine:
        _send()
      return mine

    with self.assertRaises(preemption.Stopped):
      with preemption.stop_on_signals(any_of):
        self.assertFalse(preemption.stop_requested())
        preemption.check()

  def test_another_thread_changes_no_handlers(self):
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
