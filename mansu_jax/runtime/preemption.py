"""Stops a run on SIGTERM and ctrl-C at a point where it can resume.

A program calls `install_handlers` first, runs its work within
`stop_on_signals`, and ends with `exit_process`. Code that saves its state uses
`deferred`, `stop_requested` and `check`.

A signal has a different effect in each phase of the process:

* After `install_handlers`: nothing needs saving, and a signal ends the process
  at once.
* Within `stop_on_signals`: a signal raises `Stopped` at the next line of this
  package that the main thread executes. It does not raise within the functions
  that this line calls, because JAX drops or converts exceptions in its
  callbacks. Within `deferred` it raises nothing until the block ends; the code
  there may ask `stop_requested`, save its state and call `check`.
* After `Stopped`: running saves finish. A second ctrl-C ends the process at
  once by `os._exit`, because an exception could interrupt native code or the
  shutdown of the interpreter. A second SIGTERM, which some launchers send, is
  ignored.
* After `exit_process`: the exit status no longer changes.

A caller outside `stop_on_signals` never sees `Stopped`. Several processes stop
together: each of them asks `stop_requested` at the same points, and all stop if
one received a signal.
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
_NOTICE_S = 3.0  # A stop that takes longer prints a notice.
_PACKAGE = str(pathlib.Path(os.path.abspath(__file__)).parents[1]) + os.sep


class Stopped(BaseException):
  """A signal stopped the run; the message is the name of the signal.

  It is no `Exception`, so that handlers of errors do not catch it.
  """


class _State:
  """State of signal handling; one for the process.

  Attributes:
    owns_process: Whether `install_handlers` was called: the program may end.
    active: Whether `stop_on_signals` is active.
    received: Name of the first signal.
    stopping: Whether a signal ended `stop_on_signals`.
    interrupted: Whether a signal has raised, or will raise, `Stopped`.
    reported: Whether the stop was printed.
    status: Exit status after `exit_process`.
    deferring: Depth of nested `deferred` blocks.
    any_of, name, then: Arguments of `stop_on_signals`.
    callbacks: Functions to call before the process ends.
  """

  owns_process: bool = False
  active: bool = False
  received: str = ''
  stopping: bool = False
  interrupted: bool = False
  reported: bool = False
  status: int | None = None
  deferring: int = 0
  any_of: Callable[[bool], bool] | None = None
  name: str = 'mansu_jax'
  then: str = 'no state was saved; the same command starts from the beginning'
  callbacks: list[Callable[[], None]] = []


_state = _State()


def install_handlers() -> None:
  """Makes a signal end the process with one line and `EXIT_STATUS`.

  Call it in the first lines of a program.
  """
  _state.owns_process = True
  for number in _SIGNALS:
    signal.signal(number, _on_signal)


@contextlib.contextmanager
def stop_on_signals(
    any_of: Callable[[bool], bool] | None = None, *,
    name: str = _State.name, then: str = _State.then) -> Iterator[None]:
  """Makes SIGTERM and SIGINT raise `Stopped` within the block.

  The block's end restores the previous handlers. In a thread other than the
  main one, which receives no signals, the function does nothing.

  Args:
    any_of: With several processes, a collective function that returns whether
      its argument is true in any of them, such as `processes.any_true`. Signals
      then take effect only where all processes call `stop_requested` or
      `check`; a second ctrl-C still ends this process at once.
    name: Name of the process in its messages.
    then: What the same command does after a stop, for the message.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = {number: signal.getsignal(number) for number in _SIGNALS}
  _state.received, _state.reported = '', False
  _state.stopping = _state.interrupted = False
  _state.any_of, _state.name, _state.then = any_of, name, then
  _state.active = True
  try:
    for number in _SIGNALS:
      signal.signal(number, _on_signal)
    yield
  except Exception as error:
    if _state.interrupted:  # A callback converted `Stopped` to an error.
      raise Stopped(_state.received) from error
    raise
  finally:
    if _state.interrupted:
      sys.settrace(None)
    _state.active, _state.stopping = False, bool(_state.received)
    for number, handler in previous.items():
      signal.signal(number, handler)
    _state.received, _state.any_of = '', None


def _on_signal(number: int, frame: types.FrameType | None) -> None:
  name, before = signal.Signals(number).name, _state.received
  repeated = before or _state.stopping or _state.status is not None
  if repeated and number == signal.SIGTERM:
    return
  if _state.status is not None:
    exit_now(_state.status)
  if repeated or not _state.active:
    report_stop(name)
    exit_now(EXIT_STATUS)
  _state.received = name
  if _state.deferring or _state.any_of:
    _report_waiting()
  else:
    _interrupt(frame)


def _interrupt(frame: types.FrameType | None) -> None:
  """Makes the innermost frame of this package raise `Stopped`."""
  _state.interrupted, frames = True, []
  while frame is not None:
    name = frame.f_code.co_filename
    if name.startswith(_PACKAGE) and name != __file__:
      frames.append(frame)
    frame = frame.f_back
  if not frames:
    raise Stopped(_state.received)
  # Enables tracing; the frames below have trace functions of their own.
  sys.settrace(lambda *_: None)
  for frame in frames:
    frame.f_trace = _raise_stopped
  # The main thread may hold a lock of `threading`.
  _thread.start_new_thread(_report_slow_stop, ())


def _raise_stopped(frame: types.FrameType, event: str, arg: Any) -> Any:
  """A trace function that raises `Stopped` at the next line."""
  del frame, arg
  if event == 'line' and not _state.deferring:
    raise Stopped(_state.received)
  return _raise_stopped


def _report_slow_stop() -> None:
  time.sleep(_NOTICE_S)
  if _state.active and _state.interrupted:
    _report_waiting()


def _report_waiting() -> None:
  _print(f'{_state.received}: stops as soon as its state is saved (press ctrl-C'
         ' again to stop at once).')


def _print(text: str) -> None:
  # Not by `logging`, which the signal may have interrupted.
  start = '\n' if os.isatty(2) else ''  # After a progress bar or `^C`.
  with contextlib.suppress(OSError):
    os.write(2, f'{start}{_state.name}: {text}\n'.encode())


def report_stop(name: str) -> None:
  """Prints, once, that the named signal stopped the process."""
  if not _state.reported:
    _state.reported = True
    _print(f'stopped by {name}; {_state.then}. Exit status {EXIT_STATUS}.')


@contextlib.contextmanager
def before_exit(callback: Callable[[], None]) -> Iterator[None]:
  """Calls a short function if the process ends within the block."""
  _state.callbacks.append(callback)
  try:
    yield
  finally:
    _state.callbacks.remove(callback)


def exit_now(status: int) -> NoReturn:
  """Ends the process without unwinding the stack; any thread may call it."""
  for callback in reversed(_state.callbacks):
    with contextlib.suppress(Exception):
      callback()
  os._exit(status)  # pylint: disable=protected-access


def exit_process(
    status: int, finish: Callable[[], Any] = lambda: None) -> NoReturn:
  """Ends the process after its work; later signals do not change the status.

  The interpreter's shutdown and its `atexit` functions are skipped: a signal
  during the shutdown would kill threads of JAX and Orbax within native code.

  Args:
    status: Exit status.
    finish: Called first; ctrl-C cuts it short.
  """
  _state.status = status
  finish()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  exit_now(status)


def owns_process() -> bool:
  """Whether the program has called `install_handlers`, so that it may end."""
  return _state.owns_process


def stop_requested() -> bool:
  """Whether a signal asked the run to stop.

  Collective: with several processes, every process must call it, and the result
  is true if any of them received a signal.
  """
  if _state.any_of is None:
    return bool(_state.received)
  if not _state.any_of(bool(_state.received)):
    return False  # A signal that arrived meanwhile counts at the next call.
  _state.received = _state.received or 'a signal that another process received'
  return True


def check() -> None:
  """Raises `Stopped` if a signal asked the run to stop; collective."""
  if stop_requested():
    raise Stopped(_state.received)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Defers `Stopped` to the end of the block.

  Nested blocks raise at the end of the outermost one. An error that leaves the
  block is not replaced. With several processes the end raises nothing; the next
  `check` does.
  """
  _state.deferring += 1
  try:
    yield
  finally:
    _state.deferring -= 1
  if not _state.deferring and _state.any_of is None:
    check()
