"""The processes of one run: joined by JAX, one of them with the files.

Each runs the same flow with the same arguments, on its part of the mesh. The
first alone reads and writes the workdir: what it finds there, or fails to, the
others are told, so that all take the same branch. What is told goes through the
devices, as everything that they exchange: all must ask in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
import os
import pickle
import sys
import traceback
from typing import TypeVar

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from mansu_jax.runtime import preemption

_ADDRESS, _NUMBER, _ID = (
    'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_SHORT = 1024  # Bytes of a message that goes at once, its length among them.
_LENGTH = 8  # Bytes that tell the length.
_PIECE = 2**26  # Most bytes of what follows, at a time.

_T = TypeVar('_T')


class _State:
  """Of this process.

  Attributes:
    alone: does what the others wait for.
    shared: what all have raised.
  """

  alone: bool = False
  shared: Exception | None = None


_state = _State()


def join(seconds: int) -> None:
  """Joins the run's other processes; before anything is on a device.

  On Cloud TPU, Slurm, Kubernetes and Open MPI, JAX finds out who they are.
  Elsewhere the environment tells: `JAX_COORDINATOR_ADDRESS`, a host and a free
  port of the first process; `JAX_NUM_PROCESSES`; `JAX_PROCESS_ID`, from 0.

  Args:
    seconds: that all may take to come.

  Raises:
    ValueError: the environment does not tell, or, of a JAX that raises that,
      not all came in time; a newer one ends the process.
  """
  logging.info('joining the other processes of the run; waits for them up to'
               ' --mesh_join_seconds=%d', seconds)
  numbers = {'num_processes': _number(_NUMBER), 'process_id': _number(_ID)}
  try:
    jax.distributed.initialize(initialization_timeout=seconds, **numbers)
  except ValueError as error:
    given = {name: os.environ.get(name) for name in (_ADDRESS, _NUMBER, _ID)}
    told = ', '.join(f'{name}={value}' for name, value in given.items()
                     if value is not None) or 'none of them'
    raise ValueError(
        f'--mesh_distributed: JAX does not find the other processes ({error})'
        f' and the environment has {told}; wanted {_ADDRESS} (host:port of'
        f' process 0), {_NUMBER}, and {_ID} from 0 to less than that. Set'
        ' them, or leave the flag out for one process.') from error
  except RuntimeError as error:
    raise ValueError(
        '--mesh_distributed: the processes did not come together within'
        f' --mesh_join_seconds={seconds} ({str(error).splitlines()[0]}); wanted'
        f' all of them. Check that all were started, and that each reaches'
        f' {os.environ.get(_ADDRESS, "the first")}.') from error
  # While none is ahead: of those that first meet later, on CPU, JAX waits half
  # a minute for the last.
  broadcast_from_primary(lambda: None)
  any_true(False)


def _number(name: str) -> int | None:
  text = os.environ.get(name, '')
  if not text:
    return None
  if not text.isdecimal():
    raise ValueError(f'{name}={text!r} in the environment is no number; wanted'
                     ' one of 0 or more. Correct it.')
  return int(text)


def number() -> int:
  """Of this process, from 0."""
  return jax.process_index()


def is_primary() -> bool:
  """Whether this process has the files; true of a process by itself."""
  return number() == 0


def any_true(mine: bool) -> bool:
  """Whether it is true in any process; all must ask."""
  if jax.process_count() == 1:
    return mine
  return bool(np.any(multihost_utils.process_allgather(np.array([mine]))))


def broadcast_from_primary(make: Callable[[], _T]) -> _T:
  """What `make` gives in the first process, which alone calls it, in all.

  All must ask; `make` is what the first does alone, so that it gathers nothing
  of the others. Asked within `make`, it is only called.

  Args:
    make: gives anything that pickles, of NumPy arrays rather than JAX's.

  Raises:
    Whatever `make` raises, in all processes.
  """
  if jax.process_count() == 1 or _state.alone:
    return make()
  outcome = None
  if is_primary():
    _state.alone = True
    try:
      outcome = make(), None
    except Exception as error:  # pylint: disable=broad-exception-caught
      outcome = None, error
    finally:
      _state.alone = False
  # Pickled by this program for itself, in the same run: never from a file.
  told = _tell(None if outcome is None else pickle.dumps(outcome))
  value, error = outcome if outcome is not None else pickle.loads(told)
  if error is not None:
    _state.shared = error
    raise error
  return value


def raise_on_all(make: Callable[[], _T]) -> _T:
  """What `make` gives, where it gives something in all processes.

  Raises:
    ValueError: it failed in another process, with that one's message.
    Others: what `make` raises here.
  """
  if jax.process_count() == 1:
    return make()
  result, failure = None, None
  try:
    result = make()
  except Exception as error:  # pylint: disable=broad-exception-caught
    failure = error
  mine = np.zeros(_SHORT, np.uint8)
  if failure is not None:
    text = (str(failure) or type(failure).__name__).encode()[:_SHORT]
    mine[:len(text)] = np.frombuffer(text, np.uint8)
  every = multihost_utils.process_allgather(mine)
  for other, row in enumerate(every):
    if row.any():
      text = row.tobytes().rstrip(b'\0').decode(errors='ignore')
      _state.shared = failure or ValueError(
          f'Process {other} cannot go on: {text}')
      raise _state.shared
  return result


def abort(error: Exception, status: int) -> None:
  """Ends this process at once where the others wait for it; else nothing.

  They would wait for minutes; so they find it gone, and end as well.

  Args:
    error: why it ends. One that all have raised is none to end at once for.
    status: the exit status; with 1, as Python's, the error is shown.
  """
  if jax.process_count() > 1 and error is not _state.shared:
    if status == 1:
      traceback.print_exception(error)
    sys.stderr.flush()
    preemption.exit_now(status)


def part() -> None:
  """Has a process that joined others wait for their end."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def _tell(data: bytes | None) -> bytes:
  """The first process's bytes, in all."""
  head = np.zeros(_SHORT, np.uint8)
  room = _SHORT - _LENGTH
  if data is not None:
    start = len(data).to_bytes(_LENGTH, 'little') + data[:room]
    head[:len(start)] = np.frombuffer(start, np.uint8)
  head = multihost_utils.broadcast_one_to_all(head).tobytes()
  size = int.from_bytes(head[:_LENGTH], 'little')
  parts = [head[_LENGTH:]]
  for start in range(room, size, _PIECE):
    length = min(_PIECE, size - start)
    piece = np.zeros(1 << (length - 1).bit_length(), np.uint8)  # Few shapes.
    if data is not None:
      piece[:length] = np.frombuffer(data, np.uint8, length, start)
    parts.append(
        multihost_utils.broadcast_one_to_all(piece)[:length].tobytes())
  return b''.join(parts)[:size]
