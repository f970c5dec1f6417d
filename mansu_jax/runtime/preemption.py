"""SIGTERM and ctrl-C: a run that is told to stop ends where it can go on.

A process that is `main`'s from its first line to its last goes through:

* starting (`hear`): there is nothing to save; a signal ends it at once.
* running (`listening`): a signal raises `Stopped` at the next line of this
  package that the main thread comes to, not within what it calls: JAX drops
  exceptions in its callbacks, or makes others of them. Within `deferred` it
  only waits to be asked for: by code that first saves its state, or by the
  block's end.
* stopping: what is being saved is finished. A second ctrl-C ends the process at
  once, by `os._exit`: an exception could strike native code, or the
  interpreter's end. A second SIGTERM, which some launchers send, does nothing.
* leaving (`leave`): the exit status stands.

Library code is never told anything unless its caller listens. Several processes
stop together: where all of them ask, and one was told to.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import signal
import sys
import threading
import time
import types
from typing import Any, NoReturn

EXIT_STATUS = 75  # EX_TEMPFAIL: try again.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE_S = 3.0  # After which a stop that takes time says so.
_OURS = str(pathlib.Path(os.path.abspath(__file__)).parents[1]) + os.sep


class Stopped(BaseException):
  """The run was told to stop; the message is the signal's name.

  No `Exception`: what passes over errors does not pass over this.
  """


class _Ear:
  """What was heard; one for the process, as signals are.

  Attributes:
    ours: whether the process is `main`'s, which may end it.
    listening: within `listening`.
    received: the first signal's name.
    stopping: whether one ended `listening`.
    interrupted: whether `Stopped` has been, or will be, raised by a signal.
    said: whether the process has said that it stops.
    status: the exit status, once it stands.
    deferring: depth of `deferred` blocks.
    any_of, name, then: as of `listening`.
    last: called before the process ends.
  """

  ours: bool = False
  listening: bool = False
  received: str = ''
  stopping: bool = False
  interrupted: bool = False
  said: bool = False
  status: int | None = None
  deferring: int = 0
  any_of: Callable[[bool], bool] | None = None
  name: str = 'mansu_jax'
  then: str = 'nothing was to be saved yet: give the same command again'
  last: list[Callable[[], None]] = []


_ear = _Ear()


def hear() -> None:
  """From now on a signal ends the process in one line, with `EXIT_STATUS`.

  For the first lines of a program: before them, while the interpreter itself
  starts, a signal does what Python does with it.
  """
  _ear.ours = True
  for number in _SIGNALS:
    signal.signal(number, _hear)


@contextlib.contextmanager
def listening(
    any_of: Callable[[bool], bool] | None = None, *,
    name: str = _Ear.name, then: str = _Ear.then) -> Iterator[None]:
  """Has SIGTERM and SIGINT raise `Stopped` within the block.

  What handled them before does so again afterwards. In a thread other than the
  main one, where signals cannot be had, nothing is done.

  Args:
    any_of: of one of several processes: whether its argument is true in any.
      Then signals only wait to be asked for, by all processes in the same
      places; ctrl-C twice still ends this one at once.
    name: of the process, when it says that it stops.
    then: what the same command does after a stop.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {number: signal.getsignal(number) for number in _SIGNALS}
  _ear.received, _ear.said = '', False
  _ear.stopping = _ear.interrupted = False
  _ear.any_of, _ear.name, _ear.then, _ear.listening = any_of, name, then, True
  try:
    for number in _SIGNALS:
      signal.signal(number, _hear)
    yield
  except Exception as error:
    if _ear.interrupted:  # Something made this of it.
      raise Stopped(_ear.received) from error
    raise
  finally:
    if _ear.interrupted:
      sys.settrace(None)
    _ear.listening, _ear.stopping = False, bool(_ear.received)
    for number, handler in before.items():
      signal.signal(number, handler)
    _ear.received, _ear.any_of = '', None


def _hear(number: int, frame: types.FrameType | None) -> None:
  name, before = signal.Signals(number).name, _ear.received
  repeated = before or _ear.stopping or _ear.status is not None
  if repeated and number == signal.SIGTERM:
    return
  if _ear.status is not None:
    exit_now(_ear.status)
  if repeated or not _ear.listening:
    say_stopped(name)
    exit_now(EXIT_STATUS)
  _ear.received = name
  if _ear.deferring or _ear.any_of:
    _say_waits()
  else:
    _interrupt(frame)


def _interrupt(frame: types.FrameType | None) -> None:
  """Has `Stopped` raised in the innermost frame of this package."""
  _ear.interrupted, ours = True, []
  while frame is not None:
    name = frame.f_code.co_filename
    if name.startswith(_OURS) and name != __file__:
      ours.append(frame)
    frame = frame.f_back
  if not ours:
    raise Stopped(_ear.received)
  sys.settrace(lambda *_: None)  # Of no new frame, but frames have their own.
  for frame in ours:
    frame.f_trace = _raise
  # Not by `threading`, of which the main thread may hold a lock.
  _thread.start_new_thread(_lose_patience, ())


def _raise(frame: types.FrameType, event: str, arg: Any) -> Any:
  del frame, arg
  if event == 'line' and not _ear.deferring:
    raise Stopped(_ear.received)
  return _raise


def _lose_patience() -> None:
  time.sleep(_PATIENCE_S)
  if _ear.listening and _ear.interrupted:
    _say_waits()


def _say_waits() -> None:
  _say(f'{_ear.received}: stops as soon as its state can be saved (ctrl-C once'
       ' more: at once).')


def _say(text: str) -> None:
  # Not by the log: the signal may have come while it is being written.
  start = '\n' if os.isatty(2) else ''  # Behind a bar, or `^C`.
  with contextlib.suppress(OSError):
    os.write(2, f'{start}{_ear.name}: {text}\n'.encode())


def say_stopped(name: str) -> None:
  """Says, once, that the process was stopped, and by what."""
  if not _ear.said:
    _ear.said = True
    _say(f'stopped by {name}; {_ear.then}. Exit status {EXIT_STATUS}.')


@contextlib.contextmanager
def before_exit(do: Callable[[], None]) -> Iterator[None]:
  """Has something short done when the process is ended within the block."""
  _ear.last.append(do)
  try:
    yield
  finally:
    _ear.last.remove(do)


def exit_now(status: int) -> NoReturn:
  """Ends the process without unwinding; from any thread."""
  for do in reversed(_ear.last):
    with contextlib.suppress(Exception):
      do()
  os._exit(status)  # pylint: disable=protected-access


def leave(status: int, finish: Callable[[], Any] = lambda: None) -> NoReturn:
  """Ends the process when all is done; signals no longer change its status.

  The interpreter's own end is left out, and with it what `atexit` was told: a
  signal there kills threads of JAX and Orbax in the midst of native code.

  Args:
    status: the exit status.
    finish: done first; ctrl-C cuts it short.
  """
  _ear.status = status
  finish()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  exit_now(status)


def is_ours() -> bool:
  """Whether the process is `main`'s, which may end it."""
  return _ear.ours


def stop_requested() -> bool:
  """Whether the run has been told to stop; of several processes, any."""
  if _ear.any_of is None:
    return bool(_ear.received)
  if not _ear.any_of(bool(_ear.received)):
    return False  # Whatever came while they agreed: next time.
  _ear.received = _ear.received or 'a signal to another process'
  return True


def check() -> None:
  """Raises `Stopped` where the run has been told to stop."""
  if stop_requested():
    raise Stopped(_ear.received)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Within the block a signal interrupts nothing; `Stopped` at its end.

  Of nested blocks, at the end of the outermost; never in the place of an error
  that leaves it. Of several processes nothing is raised at its end.
  """
  _ear.deferring += 1
  try:
    yield
  finally:
    _ear.deferring -= 1
  if not _ear.deferring and _ear.any_of is None:
    check()
