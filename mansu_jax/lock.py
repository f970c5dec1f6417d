"""The lock of a workdir: one run at a time, of any process, thread or host.

`WORKDIR/.mansu_jax.lock` names the process that runs there. The kernel holds it
(`flock`), and frees it whatever the process dies of; a clean end removes it.
Some file systems keep flock to one host or mount, or have none. For these the
owner touches the file every few seconds: a lock from elsewhere that stays
untouched for longer than NFS and the like keep a file's times is that of a dead
process. No two hosts' clocks are compared: who waits watches the file.
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

from mansu_jax import preemption

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None

NAME = '.mansu_jax.lock'
LOST_STATUS = 2  # Exit status where another run has taken the lock.
_BEAT_S, _WATCH_S, _POLL_S = 5.0, 90.0, 0.5
_OLD_S = 600.0  # Untouched for so long, nobody needs to watch.
_TRIES = 100  # Of opening a file that its owner is just removing.
_BOOT = pathlib.Path('/proc/sys/kernel/random/boot_id')
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)


class _Held:
  """A lock that this process holds.

  Attributes:
    path: its file.
    file: descriptor of the file, which flock belongs to.
    text: what the file says.
    made: folders that were made for it.
    process, thread: that hold it; the thread may ask again.
    leaving: whether the file is being removed, and is no longer missed.
    ended: ends the heartbeat.
  """

  def __init__(self, path: pathlib.Path, file: int, made: list[pathlib.Path]):
    self.path, self.file, self.made = path, file, made
    self.process, self.thread = os.getpid(), threading.get_ident()
    self.leaving = self.written = False
    self.ended = threading.Event()
    self.text = json.dumps({
        'pid': self.process, 'host': socket.gethostname(), 'started':
        datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec='seconds'), 'place': _place(file), 'id': uuid.uuid4().hex})

  def is_ours(self) -> bool:
    """Whether the file at the path is still the one that was written."""
    try:
      return self.path.read_text('utf-8') == self.text
    except FileNotFoundError:
      return False
    except (OSError, ValueError):
      return True  # Nothing says that it is another's.


_held: dict[str, _Held] = {}


def _forget() -> None:
  """Of a forked child: the lock is its parent's."""
  for lock in _held.values():
    os.close(lock.file)
    lock.ended = threading.Event()  # The old one may be in use, for ever.
    lock.ended.set()
  _held.clear()


if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def held(root: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a workdir within the block.

  The folder is made where it is missing; one that is empty at the end goes. The
  thread that holds it may ask again.

  Args:
    root: the workdir.

  Raises:
    ValueError: another run has it, or the folder cannot be written.
  """
  key = os.path.realpath(root)
  mine = _held.get(key)
  if mine is not None:
    if mine.thread != threading.get_ident():
      raise _refusal(root, json.loads(mine.text))
    yield
    return
  made = []  # Known before it is written: a signal may end the process then.
  with preemption.before_exit(lambda: [_remove(lock) for lock in made]):
    lock = _held[key] = _acquire(root, made)
    try:
      threading.Thread(target=_beat, args=(lock,), daemon=True).start()
      yield
    finally:
      _held.pop(key, None)
      _release(lock)


def check(root: pathlib.Path) -> None:
  """Raises ValueError where the lock was held and is another run's now."""
  lock = _held.get(os.path.realpath(root))
  if lock is not None and not lock.is_ours():
    raise ValueError(_lost(lock))


def cannot_write(root: pathlib.Path, error: OSError) -> ValueError:
  """What is said of a workdir that cannot be written."""
  why = ('it is a file, or a link that leads nowhere' if isinstance(
      error, FileExistsError) else error.strerror)
  return ValueError(f'--workdir={root} cannot be written: {why}. Give a folder'
                    ' that can be.')


def _acquire(root: pathlib.Path, known: list[_Held]) -> _Held:
  """The lock, which is in `known` before its file is written."""
  made = []
  try:
    full = root.absolute()  # The caller may go to another folder.
    made = [path for path in (full, *full.parents) if not path.exists()]
    for _ in range(_TRIES):
      try:
        root.mkdir(parents=True, exist_ok=True)
        lock = _try(root, made, known)
      except FileNotFoundError:  # Its owner has just removed the folder.
        continue
      if lock is not None:
        return lock
    raise _refusal(root, {})
  except BaseException as error:
    _remove_empty(made)
    if isinstance(error, OSError):
      raise cannot_write(root, error) from error
    raise


def _try(
    root: pathlib.Path, made: list[pathlib.Path], known: list[_Held]
) -> _Held | None:
  """The lock; None where its file was removed meanwhile."""
  path = root / NAME
  file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0),
                 0o666)
  try:
    free = _flock(file)
    former = _read(file)
    if free is False:
      raise _refusal(root, former)
    if not _is_at(file, path):
      os.close(file)
      return None
    if former:
      if not (free and former.get('place') == _place(file)):
        _watch(root, file, former)
      logging.warning(
          '%s: takes over the lock of %s, which is gone.', root, _who(former))
    lock = _Held(path.absolute(), file, made)
    known.append(lock)
    os.ftruncate(file, 0)
    os.pwrite(file, lock.text.encode(), 0)
    os.fsync(file)  # Else other hosts may not see it before it is closed.
    lock.written = True
    return lock
  except BaseException:
    while known:
      _remove(known.pop())
    os.close(file)
    raise


def _flock(file: int) -> bool | None:
  """Whether nobody else holds it; None where the file system has no flock."""
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
        ' in it at once may not notice each other for %d s.', error.strerror,
        _BEAT_S)
    return None


def _is_at(file: int, path: pathlib.Path) -> bool:
  """Whether an open file is the one at the path, not one removed since."""
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _place(file: int) -> list[Any]:
  """Kernel and mount: in one place, flock is known to all."""
  boot = _BOOT.read_text('utf-8').strip() if _BOOT.exists() else ''
  return [boot or socket.gethostname(), os.fstat(file).st_dev]


def _read(file: int) -> dict[str, Any]:
  """What the owner wrote; empty where that is nothing or no JSON object."""
  try:
    found = json.loads(os.pread(file, 2**16, 0))
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _watch(root: pathlib.Path, file: int, former: dict[str, Any]) -> None:
  """Returns when a lock from elsewhere is found dead; ValueError if it lives.
  """
  path, before = root / NAME, _stamp(root / NAME)
  if _age(root, file) > _OLD_S:
    return
  logging.info(
      '%s is locked by %s, of which the file system cannot tell whether it is'
      ' gone: waits %d s for a sign of life.', root, _who(former), _WATCH_S)
  end = time.monotonic() + _WATCH_S
  while time.monotonic() < end:
    time.sleep(_POLL_S)
    if _stamp(path) != before:
      raise _refusal(root, former)


def _stamp(path: pathlib.Path) -> tuple[int, bytes]:
  """Changes with each beat; the file is opened, so that NFS looks again."""
  with open(path, 'rb') as file:
    return os.fstat(file.fileno()).st_mtime_ns, file.read()


def _age(root: pathlib.Path, file: int) -> float:
  """Seconds since a file was touched, by the clock of its file system."""
  with tempfile.TemporaryFile(dir=root) as now:
    now.write(b'now')
    now.flush()
    return os.fstat(now.fileno()).st_mtime - os.fstat(file).st_mtime


def _who(owner: dict[str, Any]) -> str:
  if not owner:
    return 'another process'
  return (f'process {owner.get("pid")} on {owner.get("host")}, started'
          f' {owner.get("started")}')


def _refusal(root: pathlib.Path, owner: dict[str, Any]) -> ValueError:
  away = owner and owner.get('host') != socket.gethostname()
  gone = f', or delete {root / NAME} if that host is gone' if away else ''
  return ValueError(
      f'--workdir={root} is in use by {_who(owner)}; wanted one run in a folder'
      f' at a time. Wait for it, stop it{gone}, or give a new folder.')


def _beat(lock: _Held) -> None:
  """Touches the file until the lock is given up or lost."""
  while not lock.ended.wait(_BEAT_S):
    if not lock.is_ours():
      if lock.leaving:
        return
      logging.error('%s', _lost(lock))
      if preemption.is_ours():  # As if killed: the other run goes on.
        preemption.exit_now(LOST_STATUS)
      return
    with contextlib.suppress(OSError):
      os.utime(lock.path)


def _lost(lock: _Held) -> str:
  return (f'{lock.path} was removed, or taken over by another run; wanted one'
          ' run in a folder at a time. This one ends; start it again when the'
          ' other is done.')


def _release(lock: _Held) -> None:
  if lock.ended.is_set():  # Of a forked child.
    return
  _remove(lock)
  lock.ended.set()
  os.close(lock.file)


def _remove(lock: _Held) -> None:
  """Removes what it left; may begin anew in its own midst, in a signal."""
  if lock.process != os.getpid():
    return
  lock.leaving = True
  if lock.is_ours() if lock.written else _is_at(lock.file, lock.path):
    lock.path.unlink(missing_ok=True)
  _remove_empty(lock.made)


def _remove_empty(folders: list[pathlib.Path]) -> None:
  for path in folders:
    with contextlib.suppress(OSError):  # There is something in it.
      path.rmdir()
