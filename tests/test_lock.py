"""The workdir's lock: one run at a time, of any process, thread or host."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax import lock

_ROOT = pathlib.Path(__file__).parents[1]
_HOLD = 'with lock.held(root):\n  print("held", flush=True)\n  time.sleep(600)'


class LockTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.parent = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.root = self.parent / 'deep' / 'run'
    self.file = self.root / lock.NAME
    patch = mock.patch.multiple(lock, _BEAT_S=0.02, _WATCH_S=0.5, _POLL_S=0.02)
    patch.start()
    self.addCleanup(patch.stop)

  def start(self, code):
    """A process that runs the code, with `root` the workdir."""
    begin = f"""
        import os, pathlib, signal, sys, time
        from mansu_jax import lock
        from mansu_jax import preemption
        root = pathlib.Path({str(self.root)!r})
        """
    process = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(begin) + textwrap.dedent(code)],
        cwd=_ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    self.addCleanup(process.kill)
    return process

  @contextlib.contextmanager
  def held_elsewhere(self):
    """Another process holds the lock."""
    process = self.start(_HOLD)
    self.assertEqual(process.stdout.readline(), 'held\n')
    yield process
    process.kill()
    process.communicate()

  def leave_a_lock(self, **changes):
    """The file that a dead process leaves, of this host unless changed."""
    self.root.mkdir(parents=True)
    self.file.touch()
    with open(self.file, 'r+b') as file:
      place = lock._place(file.fileno())
      file.write(json.dumps({'pid': 7, 'host': 'far', 'started': '2020',
                             'place': place} | changes).encode())

  def refused(self, message):
    return self.assertRaisesRegex(ValueError, message)

  def test_leaves_nothing_behind(self):
    with lock.held(self.root):
      self.assertEqual([p.name for p in self.root.iterdir()], [lock.NAME])
    self.assertEmpty(list(self.parent.iterdir()))

  def test_leaves_what_the_run_wrote(self):
    with self.assertRaises(KeyError), lock.held(self.root):
      (self.root / 'record.json').touch()
      raise KeyError
    self.assertEqual([p.name for p in self.root.iterdir()], ['record.json'])

  def test_another_process_is_refused_and_told_by_whom(self):
    with self.held_elsewhere() as process:
      for _ in range(2):
        with self.refused(
            f'--workdir={self.root} is in use by process {process.pid} on'
            f' {socket.gethostname()}, started 20.*; wanted one run in a'
            ' folder.* Wait for it, stop it, or give a new folder'):
          with lock.held(self.root):
            self.fail('went on')
      self.assertTrue(self.file.exists())

  def test_a_refused_run_imports_no_jax(self):
    with self.held_elsewhere():
      process = self.start("""
          from mansu_jax import main, run_flags
          from absl import flags
          run_flags.define()
          status = main.main(flags.FLAGS(['x', f'--workdir={root}']))
          print(status, 'jax' in sys.modules)
          """)
      self.assertEqual(process.communicate()[0], '2 False\n')

  def test_a_killed_process_leaves_one_that_is_taken_over(self):
    with self.held_elsewhere() as process:
      process.kill()
      process.wait()
    with self.assertLogs() as logs, lock.held(self.root):
      pass
    self.assertRegex(logs.output[0], f'takes over the lock of process'
                     f' {process.pid} on .*, started 20.*, which is gone')
    self.assertFalse(self.file.exists())

  def test_the_thread_that_has_it_may_ask_again_another_not(self):
    told = []

    def ask():
      try:
        with lock.held(self.root):
          told.append('held')
      except ValueError as error:
        told.append(str(error))

    with lock.held(self.root):
      with lock.held(self.root / '..' / 'run'):
        pass
      self.assertTrue(self.file.exists())
      thread = threading.Thread(target=ask)
      thread.start()
      thread.join()
    self.assertRegex(told[0], f'in use by process {os.getpid()} on')
    ask()
    self.assertEqual(told[1], 'held')

  def test_a_child_neither_has_it_nor_keeps_it(self):
    process = self.start("""
        read, write = os.pipe()
        try:
          with lock.held(root):
            left = os.fork()
            if not left:
              raise KeyError  # Leaves the block, and lets the parent's be.
            os.waitpid(left, 0)
            print((root / lock.NAME).exists(), flush=True)
            stays = os.fork()
            if not stays:
              os.close(write)
              os.read(read, 1)  # Until the parent says so.
              os._exit(bool(lock._held))
        except KeyError:
          os._exit(0)
        with lock.held(root):
          os.write(write, b'x')
          print(os.waitpid(stays, 0)[1], 'held')
        """)
    said, errors = process.communicate()
    self.assertEqual(said, 'True\n0 held\n', errors)

  def test_a_stop_by_a_signal_removes_it(self):
    process = self.start('preemption.hear()\n' + _HOLD)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    self.assertEqual(process.returncode, 75)
    self.assertEmpty(list(self.parent.iterdir()))

  @parameterized.parameters('is_ours', 'path', 'made')
  def test_a_signal_while_it_is_released_leaves_nothing(self, reached):
    process = self.start(f"""
        class Impatient(lock._Held):
          armed = False

          def __getattribute__(self, name):
            if name == {reached!r} and Impatient.armed:
              Impatient.armed = False
              os.kill(os.getpid(), signal.SIGINT)
            return super().__getattribute__(name)

        preemption.hear()
        lock._Held = Impatient
        with lock.held(root):
          Impatient.armed = True
        sys.exit('no signal')
        """)
    _, errors = process.communicate()
    self.assertEqual(process.returncode, 75, errors)
    self.assertEmpty(list(self.parent.iterdir()))

  @parameterized.parameters(None, errno.EOPNOTSUPP)
  def test_from_elsewhere_a_sign_of_life_decides(self, no_flock):
    """On a file system whose flock does not reach other hosts, or lacks."""
    self.leave_a_lock(place=['elsewhere', 1])
    with self.file_system(no_flock):
      touched = threading.Event()
      sleep = lock.time.sleep

      def touch(seconds):
        sleep(seconds)
        if touched.is_set():
          os.utime(self.file)

      with mock.patch.object(lock.time, 'sleep', touch):
        touched.set()
        with self.refused('in use by process 7 on far, started 2020.*or delete'
                          f' {self.file} if that host is gone'):
          with lock.held(self.root):
            self.fail('went on')
        touched.clear()
        with self.assertLogs() as logs, lock.held(self.root):
          self.assertIn(str(os.getpid()), self.file.read_text())
    self.assertRegex(' '.join(logs.output), 'waits .* for a sign of life.*takes'
                     ' over the lock of process 7 on far')

  def file_system(self, no_flock):
    """Has flock fail with an error number, where one is given."""
    return mock.patch.object(lock.fcntl, 'flock', side_effect=OSError(
        no_flock, 'none')) if no_flock else contextlib.nullcontext()

  def test_from_elsewhere_and_long_untouched_it_is_dead(self):
    self.leave_a_lock(place=['elsewhere', 1])
    os.utime(self.file, (0, 0))
    with mock.patch.object(lock.time, 'sleep', side_effect=AssertionError):
      with lock.held(self.root):
        pass

  @parameterized.parameters('', '{', '[1]', '"x"')
  def test_a_file_that_says_nothing_is_taken(self, text):
    self.root.mkdir(parents=True)
    self.file.write_text(text)
    with lock.held(self.root):
      self.assertIn('"pid"', self.file.read_text())

  def test_a_file_that_its_owner_is_just_removing(self):
    flock, calls = lock._flock, []

    def remove_first(file):
      calls.append(file)
      if len(calls) == 1:
        self.file.unlink()
      return flock(file)

    with mock.patch.object(lock, '_flock', remove_first):
      with lock.held(self.root):
        self.assertTrue(self.file.exists())
    self.assertLen(calls, 2)

  def test_one_that_another_run_has_taken_is_noticed_and_left_alone(self):
    with lock.held(self.root):
      lock.check(self.root)
      self.file.write_text('{"pid": 8}')
      with self.refused('was removed, or taken over by another run'):
        lock.check(self.root)
    self.assertEqual(self.file.read_text(), '{"pid": 8}')

  def test_a_program_that_has_lost_it_ends(self):
    process = self.start(
        'lock._BEAT_S = 0.02\npreemption.hear()\n' + _HOLD)
    process.stdout.readline()
    self.file.unlink()
    _, errors = process.communicate()
    self.assertEqual(process.returncode, 2)
    self.assertIn('was removed, or taken over by another run', errors)

  def test_the_owner_touches_it(self):
    with lock.held(self.root):
      os.utime(self.file, (0, 0))
      while self.file.stat().st_mtime == 0:
        lock.time.sleep(0.01)

  @parameterized.parameters('file', 'file/below')
  def test_a_folder_that_cannot_be_made_leaves_nothing(self, name):
    (self.parent / 'file').write_text('')
    with self.refused('cannot be written: .*Give a folder'):
      with lock.held(self.parent / name):
        self.fail('went on')
    self.assertEqual([p.name for p in self.parent.iterdir()], ['file'])


_STOPPED = """
import os, pathlib, signal, sys
from mansu_jax import lock, preemption
preemption.hear()
os.fsync = lambda file: os.kill(os.getpid(), int(sys.argv[2]))
with lock.held(pathlib.Path(sys.argv[1], 'new')):
  signal.pause()
"""


class WritingTest(parameterized.TestCase):
  """While the lock is written it is removed already, and so is its folder."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(KeyboardInterrupt, OSError(28, 'No space'))
  def test_an_error_leaves_nothing(self, error):
    with mock.patch.object(os, 'fsync', side_effect=error):
      with self.assertRaises((KeyboardInterrupt, ValueError)):
        with lock.held(self.folder / 'new'):
          self.fail('It is held.')
    self.assertEmpty(list(self.folder.iterdir()))
    with lock.held(self.folder / 'new'):  # Nothing of it is left in here.
      pass

  def test_a_thread_that_does_not_start_leaves_nothing(self):
    with mock.patch.object(
        threading.Thread, 'start', side_effect=RuntimeError('no thread')):
      with self.assertRaisesRegex(RuntimeError, 'no thread'):
        with lock.held(self.folder / 'new'):
          self.fail('It is held.')
    self.assertEmpty(list(self.folder.iterdir()))

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_a_signal_leaves_nothing(self, number):
    done = subprocess.run(
        [sys.executable, '-c', _STOPPED, self.folder, str(int(number))],
        capture_output=True, text=True, timeout=120)
    self.assertEqual(done.returncode, 75, done.stderr)
    self.assertEmpty(list(self.folder.iterdir()))


if __name__ == '__main__':
  absltest.main()
