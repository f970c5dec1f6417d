"""The lock of a workdir, between processes, threads and hosts."""

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

from mansu_jax.runtime import lock

_ROOT = pathlib.Path(__file__).parents[2]
_HOLD = 'with lock.held(root):\n  print("held", flush=True)\n  time.sleep(600)'


class LockTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.parent = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.root = self.parent / 'deep' / 'run'
    self.file = self.root / lock.NAME
    patch = mock.patch.multiple(
        lock, _HEARTBEAT_S=0.02, _WATCH_S=0.5, _POLL_S=0.02)
    patch.start()
    self.addCleanup(patch.stop)

  def start(self, code):
    """Starts a process that runs the code; `root` is the workdir."""
    begin = f"""
        import os, pathlib, signal, sys, time
        from mansu_jax.runtime import lock
        from mansu_jax.runtime import preemption
        root = pathlib.Path({str(self.root)!r})
        """
    process = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(begin) + textwrap.dedent(code)],
        cwd=_ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    self.addCleanup(process.kill)
    return process

  @contextlib.contextmanager
  def held_elsewhere(self):
    """Holds the lock in another process."""
    process = self.start(_HOLD)
    self.assertEqual(process.stdout.readline(), 'held\n')
    yield process
    process.kill()
    process.communicate()

  def leave_a_lock(self, **changes):
    """Writes the lock file of a dead process of this host."""
    self.root.mkdir(parents=True)
    self.file.touch()
    with open(self.file, 'r+b') as file:
      kernel = lock._kernel_and_device(file.fileno())
      file.write(json.dumps({'pid': 7, 'host': 'far', 'started': '2020',
                             'place': kernel} | changes).encode())

  def refused(self, message):
    return self.assertRaisesRegex(ValueError, message)

  def test_removes_the_file_and_empty_folders(self):
    with lock.held(self.root):
      self.assertEqual([p.name for p in self.root.iterdir()], [lock.NAME])
    self.assertEmpty(list(self.parent.iterdir()))

  def test_keeps_the_files_of_the_run(self):
    with self.assertRaises(KeyError), lock.held(self.root):
      (self.root / 'record.json').touch()
      raise KeyError
    self.assertEqual([p.name for p in self.root.iterdir()], ['record.json'])

  def test_the_error_names_the_owner(self):
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
          from absl import flags
          from mansu_jax import main
          from mansu_jax.config import flags as flags_lib
          flags_lib.define()
          status = main.main(flags.FLAGS(['x', f'--workdir={root}']))
          print(status, 'jax' in sys.modules)
          """)
      self.assertEqual(process.communicate()[0], '2 False\n')

  def test_the_lock_of_a_killed_process_is_taken_over(self):
    with self.held_elsewhere() as process:
      process.kill()
      process.wait()
    with self.assertLogs() as logs, lock.held(self.root):
      pass
    self.assertRegex(logs.output[0], f'takes over the lock of process'
                     f' {process.pid} on .*, started 20.*, which has ended')
    self.assertFalse(self.file.exists())

  def test_it_is_reentrant_within_a_thread_only(self):
    found = []

    def acquire():
      try:
        with lock.held(self.root):
          found.append('held')
      except ValueError as error:
        found.append(str(error))

    with lock.held(self.root):
      with lock.held(self.root / '..' / 'run'):
        pass
      self.assertTrue(self.file.exists())
      thread = threading.Thread(target=acquire)
      thread.start()
      thread.join()
    self.assertRegex(found[0], f'in use by process {os.getpid()} on')
    acquire()
    self.assertEqual(found[1], 'held')

  def test_a_forked_child_does_not_hold_it(self):
    process = self.start("""
        read, write = os.pipe()
        try:
          with lock.held(root):
            left = os.fork()
            if not left:
              raise KeyError  # Leaves the block and keeps the file.
            os.waitpid(left, 0)
            print((root / lock.NAME).exists(), flush=True)
            stays = os.fork()
            if not stays:
              os.close(write)
              os.read(read, 1)  # Until the parent writes.
              os._exit(bool(lock._held))
        except KeyError:
          os._exit(0)
        with lock.held(root):
          os.write(write, b'x')
          print(os.waitpid(stays, 0)[1], 'held')
        """)
    said, errors = process.communicate()
    self.assertEqual(said, 'True\n0 held\n', errors)

  def test_a_signal_removes_the_file(self):
    process = self.start('preemption.install_handlers()\n' + _HOLD)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    self.assertEqual(process.returncode, 75)
    self.assertEmpty(list(self.parent.iterdir()))

  @parameterized.parameters('is_ours', 'path', 'made')
  def test_a_signal_during_the_release_removes_all(self, reached):
    process = self.start(f"""
        class Interrupted(lock._Held):
          armed = False

          def __getattribute__(self, name):
            if name == {reached!r} and Interrupted.armed:
              Interrupted.armed = False
              os.kill(os.getpid(), signal.SIGINT)
            return super().__getattribute__(name)

        preemption.install_handlers()
        lock._Held = Interrupted
        with lock.held(root):
          Interrupted.armed = True
        sys.exit('no signal')
        """)
    _, errors = process.communicate()
    self.assertEqual(process.returncode, 75, errors)
    self.assertEmpty(list(self.parent.iterdir()))

  @parameterized.parameters(None, errno.EOPNOTSUPP)
  def test_a_lock_of_another_host_is_watched(self, no_flock):
    """On a file system whose flock is local to a host, or missing."""
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
                          f' {self.file} if that host is down'):
          with lock.held(self.root):
            self.fail('went on')
        touched.clear()
        with self.assertLogs() as logs, lock.held(self.root):
          self.assertIn(str(os.getpid()), self.file.read_text())
    self.assertRegex(' '.join(logs.output), 'watches the lock for .*takes'
                     ' over the lock of process 7 on far')

  def file_system(self, no_flock):
    """Makes flock fail with an error number, if one is given."""
    return mock.patch.object(lock.fcntl, 'flock', side_effect=OSError(
        no_flock, 'none')) if no_flock else contextlib.nullcontext()

  def test_an_old_lock_of_another_host_is_taken_over(self):
    self.leave_a_lock(place=['elsewhere', 1])
    os.utime(self.file, (0, 0))
    with mock.patch.object(lock.time, 'sleep', side_effect=AssertionError):
      with lock.held(self.root):
        pass

  @parameterized.parameters('', '{', '[1]', '"x"')
  def test_an_unreadable_file_is_taken_over(self, text):
    self.root.mkdir(parents=True)
    self.file.write_text(text)
    with lock.held(self.root):
      self.assertIn('"pid"', self.file.read_text())

  def test_a_file_that_its_owner_is_removing(self):
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

  def test_a_lost_lock_is_noticed_and_its_file_kept(self):
    with lock.held(self.root):
      lock.check_held(self.root)
      self.file.write_text('{"pid": 8}')
      with self.refused('was removed, or another run took it over'):
        lock.check_held(self.root)
    self.assertEqual(self.file.read_text(), '{"pid": 8}')

  def test_a_program_that_loses_the_lock_ends(self):
    process = self.start(
        'lock._HEARTBEAT_S = 0.02\npreemption.install_handlers()\n' + _HOLD)
    process.stdout.readline()
    self.file.unlink()
    _, errors = process.communicate()
    self.assertEqual(process.returncode, 2)
    self.assertIn('was removed, or another run took it over', errors)

  def test_the_owner_touches_the_file(self):
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
from mansu_jax.runtime import lock, preemption
preemption.install_handlers()
os.fsync = lambda file: os.kill(os.getpid(), int(sys.argv[2]))
with lock.held(pathlib.Path(sys.argv[1], 'new')):
  signal.pause()
"""


class WritingTest(parameterized.TestCase):
  """A stop during the write of the lock leaves neither file nor folder."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(KeyboardInterrupt, OSError(28, 'No space'))
  def test_an_error_leaves_nothing(self, error):
    with mock.patch.object(os, 'fsync', side_effect=error):
      with self.assertRaises((KeyboardInterrupt, ValueError)):
        with lock.held(self.folder / 'new'):
          self.fail('The lock is held.')
    self.assertEmpty(list(self.folder.iterdir()))
    with lock.held(self.folder / 'new'):  # The process keeps no trace of it.
      pass

  def test_a_thread_that_does_not_start_leaves_nothing(self):
    with mock.patch.object(
        threading.Thread, 'start', side_effect=RuntimeError('no thread')):
      with self.assertRaisesRegex(RuntimeError, 'no thread'):
        with lock.held(self.folder / 'new'):
          self.fail('The lock is held.')
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
