"""SIGTERM and ctrl-C: a run that is told to stop ends where it can go on.

`main` listens; library code is never told anything unless its caller does.
Without more, a signal raises `Stopped` wherever the main thread is; where
Python drops that and says so, as in a callback of the garbage collector, the
next `check` or end of a `deferred` block raises it. Within `deferred` it only
waits to be asked for: by code that first saves its state, or by the block's
end.

Several processes stop together: where all of them ask, and one was told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import threading

EXIT_STATUS = 75  # EX_TEMPFAIL: try again.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
  """The run was told to stop; the message is the signal's name.

  No `Exception`: what passes over errors does not pass over this.
  """


class _Ear:
  """What was heard; one for the process, as signals are."""

  heard: str = ''
  deferring: int = 0
  any_of: Callable[[bool], bool] | None = None


_ear = _Ear()


@contextlib.contextmanager
def listening(
    any_of: Callable[[bool], bool] | None = None) -> Iterator[None]:
  """Listens to SIGTERM and SIGINT within the block.

  What handled them before does so again afterwards. In a thread other than the
  main one, where signals cannot be had, nothing is done.

  Args:
    any_of: of one of several processes: whether its argument is true in any.
      Then signals only wait to be asked for, by all processes in the same
      places; ctrl-C twice still ends this one at once.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {number: signal.getsignal(number) for number in _SIGNALS}
  _ear.heard, _ear.any_of = '', any_of
  try:
    for number in _SIGNALS:
      signal.signal(number, _hear)
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    _ear.heard, _ear.any_of = '', None


def _hear(number: int, frame: object) -> None:
  del frame
  impatient = number == signal.SIGINT and _ear.heard
  _ear.heard = signal.Signals(number).name
  if impatient and _ear.any_of is not None:
    os._exit(EXIT_STATUS)  # pylint: disable=protected-access
  if impatient or not (_ear.deferring or _ear.any_of):
    raise Stopped(_ear.heard)
  # Not by the log: the signal may have come while it is being written.
  os.write(2, (  # Standard error.
      f'mansu_jax: {_ear.heard}: stops as soon as its state can be saved'
      ' (ctrl-C once more: at once).\n').encode())


def asked() -> bool:
  """Whether the run has been told to stop; of several processes, any."""
  if _ear.any_of is None:
    return bool(_ear.heard)
  if not _ear.any_of(bool(_ear.heard)):
    return False  # Whatever came while they agreed: next time.
  _ear.heard = _ear.heard or 'a signal to another process'
  return True


def check() -> None:
  """Raises `Stopped` where the run has been told to stop."""
  if asked():
    raise Stopped(_ear.heard)


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
