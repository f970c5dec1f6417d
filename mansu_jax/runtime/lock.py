"""Locks a workdir, so that one run at a time uses it.

`held` is a context manager that holds the lock; `check_held` raises if another
run has taken it since.

The lock is the file `WORKDIR/.mansu_jax.lock`, which names its owner. The owner
holds it by `flock`, which the kernel releases when the process dies; a clean
exit removes the file. On some file systems, `flock` does not reach other hosts
or mounts, or is missing. There the age of the file decides: the owner touches
it every few seconds, and a process that wants the lock takes it over if nobody
touches the file for longer than NFS caches file times. It watches the file
instead of comparing the clocks of two hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import tempfile
import threading
import time
from typing import Any
import uuid

from absl import logging

from mansu_jax.runtime import preemption

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None

NAME = '.mansu_jax.lock'
LOST_STATUS = 2  # Exit status after another run has taken the lock.
_HEARTBEAT_S, _WATCH_S, _POLL_S = 5.0, 90.0, 0.5
_STALE_S = 600.0  # An older file belongs to a dead process.
_ATTEMPTS = 100  # To open a file that its owner is removing.
_BOOT_ID = pathlib.Path('/proc/sys/kernel/random/boot_id')
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)


class _Held:
  """A lock that this process holds.

  Attributes:
    path: Path of the lock file.
    file: Descriptor of the lock file, which the flock belongs to.
    text: Content of the lock file.
    made: Folders that were created for the file, innermost first.
    process, thread: Owner of the lock.
    written: Whether the file has its content.
    releasing: Whether the owner is removing the file.
    ended: Event that ends the heartbeat.
  """

  def __init__(self, path: pathlib.Path, file: int, made: list[pathlib.Path]):
    self.path, self.file, self.made = path, file, made
    self.process, self.thread = os.getpid(), threading.get_ident()
    self.written = self.releasing = False
    self.ended = threading.Event()
    now = datetime.datetime.now(datetime.timezone.utc)
    self.text = json.dumps({
        'pid': self.process, 'host': socket.gethostname(),
        'started': now.isoformat(timespec='seconds'),
        'place': _kernel_and_device(file), 'id': uuid.uuid4().hex})

  def is_ours(self) -> bool:
    """Whether the lock file still has the content that this process wrote."""
    try:
      return self.path.read_text('utf-8') == self.text
    except FileNotFoundError:
      return False
    except (OSError, ValueError):
      return True  # An unreadable file does not prove another owner.


_held: dict[str, _Held] = {}  # By real path of the workdir.


def _drop_after_fork() -> None:
  """Drops the locks in a forked child; they belong to its parent."""
  for lock in _held.values():
    os.close(lock.file)
    # The fork may have copied the old event while a thread held its lock.
    lock.ended = threading.Event()
    lock.ended.set()
  _held.clear()


if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_drop_after_fork)


@contextlib.contextmanager
def held(root: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a workdir within the block.

  Creates a missing folder, and removes it at the end if it is empty. The lock
  is reentrant within a thread.

  Args:
    root: The workdir.

  Raises:
    ValueError: Another run holds the lock, or the folder cannot be written.
  """
  key = os.path.realpath(root)
  own = _held.get(key)
  if own is not None:
    if own.thread != threading.get_ident():
      raise _in_use_error(root, json.loads(own.text))
    yield
    return
  # `_acquire` lists what it makes before it makes it.
  acquired: list[_Held] = []
  made: list[pathlib.Path] = []

  def remove_all():
    for lock in acquired:
      _remove(lock)
    _remove_empty(made)

  with preemption.before_exit(remove_all):
    lock = _held[key] = _acquire(root, acquired, made)
    try:
      threading.Thread(target=_heartbeat, args=(lock,), daemon=True).start()
      yield
    finally:
      _held.pop(key, None)
      _release(lock)


def check_held(root: pathlib.Path) -> None:
  """Raises ValueError if this process has lost the lock to another run."""
  lock = _held.get(os.path.realpath(root))
  if lock is not None and not lock.is_ours():
    raise ValueError(_lost_message(lock))


def not_writable_error(root: pathlib.Path, error: OSError) -> ValueError:
  """The error for a workdir that cannot be written."""
  why = ('it is a file or a broken link' if isinstance(error, FileExistsError)
         else error.strerror)
  return ValueError(f'--workdir={root} cannot be written: {why}. Give a folder'
                    ' that can be written.')


def _acquire(
    root: pathlib.Path, acquired: list[_Held], made: list[pathlib.Path]
) -> _Held:
  """Acquires the lock.

  Args:
    root: the workdir.
    acquired: gets the lock before its file is written.
    made: gets the folders before they are made.
  """
  try:
    full = root.absolute()  # The caller may change the working directory.
    made += [path for path in (full, *full.parents) if not path.exists()]
    for _ in range(_ATTEMPTS):
      try:
        root.mkdir(parents=True, exist_ok=True)
        lock = _try_acquire(root, made, acquired)
      except FileNotFoundError:  # The owner has just removed the folder.
        continue
      if lock is not None:
        return lock
    raise _in_use_error(root, {})
  except BaseException as error:
    _remove_empty(made)
    if isinstance(error, OSError):
      raise not_writable_error(root, error) from error
    raise


def _try_acquire(
    root: pathlib.Path, made: list[pathlib.Path], acquired: list[_Held]
) -> _Held | None:
  """Acquires the lock; returns None if its file was removed meanwhile."""
  path = root / NAME
  file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0),
                 0o666)
  try:
    locked = _flock(file)
    former = _read(file)
    if locked is False:
      raise _in_use_error(root, former)
    if not _is_at(file, path):
      os.close(file)
      return None
    if former:
      if not (locked and former.get('place') == _kernel_and_device(file)):
        _check_dead(root, file, former)
      logging.warning('%s: this run takes over the lock of %s, which has'
                      ' ended.', root, _describe(former))
    lock = _Held(path.absolute(), file, made)
    acquired.append(lock)
    os.ftruncate(file, 0)
    os.pwrite(file, lock.text.encode(), 0)
    os.fsync(file)  # Makes the content visible to other hosts at once.
    lock.written = True
    return lock
  except BaseException:
    while acquired:
      _remove(acquired.pop())
    os.close(file)
    raise


def _flock(file: int) -> bool | None:
  """Takes the flock; False if another has it, None without flock support."""
  try:
    if fcntl is None:
      raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
  except BlockingIOError:
    return False
  except OSError as error:
    if error.errno not in _NO_FLOCK:
      raise
    logging.warning(
        'The file system of the workdir has no flock (%s): two runs that start'
        ' at the same time may not notice each other for %d s.',
        error.strerror, _HEARTBEAT_S)
    return None


def _is_at(file: int, path: pathlib.Path) -> bool:
  """Whether an open file is still the one at the path."""
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _kernel_and_device(file: int) -> list[Any]:
  """Identifies the running kernel and the mounted device of a file.

  All processes with the same value see each other's flock.
  """
  boot = _BOOT_ID.read_text('utf-8').strip() if _BOOT_ID.exists() else ''
  return [boot or socket.gethostname(), os.fstat(file).st_dev]


def _read(file: int) -> dict[str, Any]:
  """The owner's entry in the lock file; empty if it is no JSON object."""
  try:
    found = json.loads(os.pread(file, 2**16, 0))
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _check_dead(
    root: pathlib.Path, file: int, former: dict[str, Any]) -> None:
  """Watches a lock of another host; raises ValueError if its owner is alive."""
  path, before = root / NAME, _stamp(root / NAME)
  if _age(root, file) > _STALE_S:
    return
  logging.info(
      '%s is locked by %s; the file system cannot tell whether that process is'
      ' alive. This run watches the lock for %d s.', root, _describe(former),
      _WATCH_S)
  end = time.monotonic() + _WATCH_S
  while time.monotonic() < end:
    time.sleep(_POLL_S)
    if _stamp(path) != before:
      raise _in_use_error(root, former)


def _stamp(path: pathlib.Path) -> tuple[int, bytes]:
  """Time and content of a file, which change with each heartbeat."""
  with open(path, 'rb') as file:  # Opening it refreshes the cache of NFS.
    return os.fstat(file.fileno()).st_mtime_ns, file.read()


def _age(root: pathlib.Path, file: int) -> float:
  """Seconds since a file was touched, by the clock of its file system."""
  with tempfile.TemporaryFile(dir=root) as now:
    now.write(b'now')
    now.flush()
    return os.fstat(now.fileno()).st_mtime - os.fstat(file).st_mtime


def _describe(owner: dict[str, Any]) -> str:
  if not owner:
    return 'another process'
  return (f'process {owner.get("pid")} on {owner.get("host")}, started'
          f' {owner.get("started")}')


def _in_use_error(root: pathlib.Path, owner: dict[str, Any]) -> ValueError:
  is_remote = owner and owner.get('host') != socket.gethostname()
  delete = (f', or delete {root / NAME} if that host is down' if is_remote
            else '')
  return ValueError(
      f'--workdir={root} is in use by {_describe(owner)}; wanted one run in a'
      f' folder at a time. Wait for it, stop it{delete}, or give a new folder.')


def _heartbeat(lock: _Held) -> None:
  """Touches the lock file until the lock is released or lost."""
  while not lock.ended.wait(_HEARTBEAT_S):
    if not lock.is_ours():
      if lock.releasing:
        return
      logging.error('%s', _lost_message(lock))
      if preemption.owns_process():
        preemption.exit_now(LOST_STATUS)
      return
    with contextlib.suppress(OSError):
      os.utime(lock.path)


def _lost_message(lock: _Held) -> str:
  return (f'{lock.path} was removed, or another run took it over. This run'
          ' ends, because a folder holds one run at a time. Start it again when'
          ' the other has ended.')


def _release(lock: _Held) -> None:
  if lock.ended.is_set():  # In a forked child.
    return
  _remove(lock)
  lock.ended.set()
  os.close(lock.file)


def _remove(lock: _Held) -> None:
  """Removes the lock file and empty folders.

  A signal handler may call it while it runs.
  """
  if lock.process != os.getpid():
    return
  lock.releasing = True
  if lock.is_ours() if lock.written else _is_at(lock.file, lock.path):
    lock.path.unlink(missing_ok=True)
  _remove_empty(lock.made)


def _remove_empty(folders: list[pathlib.Path]) -> None:
  for path in folders:
    with contextlib.suppress(OSError):  # The folder is not empty.
      path.rmdir()
