"""SIGTERM and ctrl-C: a run that is told to stop ends where it can go on.

`main` listens; library code is never told anything unless its caller does.
Without more, a signal raises `Stopped` wherever the main thread is; where
Python drops that and says so, as in a callback of the garbage collector, the
next `check` or end of a `deferred` block raises it. Within `deferred` it only
waits to be asked for: by code that first saves its state, or by the block's
end.
"""

from __future__ import annotations

from collections.abc import Iterator
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


_ear = _Ear()


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Listens to SIGTERM and SIGINT within the block.

  What handled them before does so again afterwards. In a thread other than the
  main one, where signals cannot be had, nothing is done.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {number: signal.getsignal(number) for number in _SIGNALS}
  _ear.heard = ''
  try:
    for number in _SIGNALS:
      signal.signal(number, _hear)
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    _ear.heard = ''


def _hear(number: int, frame: object) -> None:
  del frame
  impatient = number == signal.SIGINT and _ear.heard
  _ear.heard = signal.Signals(number).name
  if impatient or not _ear.deferring:
    check()
  # Not by the log: the signal may have come while it is being written.
  os.write(2, (  # Standard error.
      f'mansu_jax: {_ear.heard}: stops as soon as its state can be saved'
      ' (ctrl-C once more: at once).\n').encode())


def asked() -> bool:
  """Whether the run has been told to stop."""
  return bool(_ear.heard)


def check() -> None:
  """Raises `Stopped` where the run has been told to stop."""
  if _ear.heard:
    raise Stopped(_ear.heard)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Within the block a signal interrupts nothing; `Stopped` at its end.

  Of nested blocks, at the end of the outermost; never in the place of an error
  that leaves it.
  """
  _ear.deferring += 1
  try:
    yield
  finally:
    _ear.deferring -= 1
  if not _ear.deferring:
    check()
