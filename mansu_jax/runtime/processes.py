"""Coordinates the processes of one run, which JAX connects.

Every process runs the same flow with the same flags on its part of the mesh.
Only the primary process, with index 0, accesses the workdir;
`broadcast_from_primary` passes its result or its error to the others, so that
all take the same branch, and `raise_on_all` makes the error of one the error of
all. These functions are collective, since they communicate through the devices:
every process must call them in the same order.
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

_ADDRESS, _COUNT, _INDEX = (
    'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_HEADER = 1024  # Bytes of the first message: the length and first bytes.
_LENGTH = 8  # Bytes of the length.
_CHUNK = 2**26  # Largest number of bytes of a later message.

_T = TypeVar('_T')


class _State:
  """State of this process.

  Attributes:
    in_broadcast: Whether the primary process computes a value to broadcast.
    shared_error: The last error that all processes have raised.
  """

  in_broadcast: bool = False
  shared_error: Exception | None = None


_state = _State()


def join(seconds: int) -> None:
  """Connects to the other processes of the run.

  Call it before any array is created. JAX finds the other processes on Cloud
  TPU, Slurm, Kubernetes and Open MPI. Elsewhere set three environment
  variables: `JAX_COORDINATOR_ADDRESS`, the host and a free port of the first
  process; `JAX_NUM_PROCESSES`; and `JAX_PROCESS_ID`, counted from 0.

  Args:
    seconds: Time to wait for all processes.

  Raises:
    ValueError: The environment does not describe the other processes, or they
      did not connect in time. Some versions of JAX end the process with status
      134 instead.
  """
  logging.info('connecting to the other processes of the run, for at most'
               ' --mesh_join_seconds=%d', seconds)
  numbers = {'num_processes': _read_number(_COUNT),
             'process_id': _read_number(_INDEX)}
  try:
    jax.distributed.initialize(initialization_timeout=seconds, **numbers)
  except ValueError as error:
    given = {name: os.environ.get(name) for name in (_ADDRESS, _COUNT, _INDEX)}
    found = ', '.join(f'{name}={value}' for name, value in given.items()
                      if value is not None) or 'none of them'
    raise ValueError(
        f'--mesh_distributed: JAX does not find the other processes ({error})'
        f' and the environment has {found}; wanted {_ADDRESS} (host:port of'
        f' process 0), {_COUNT}, and {_INDEX}, from 0 to {_COUNT} - 1. Set'
        ' them, or leave the flag out to run one process.') from error
  except RuntimeError as error:
    raise ValueError(
        '--mesh_distributed: timed out waiting for another process after'
        f' --mesh_join_seconds={seconds} ({str(error).splitlines()[0]}). Check'
        ' that all processes were started, and that each reaches'
        f' {os.environ.get(_ADDRESS, "process 0")}.') from error
  # The processes are in step here. On CPU, JAX waits only half a minute for the
  # last process of a collective, if the processes have not communicated before.
  broadcast_from_primary(lambda: None)
  any_true(False)


def _read_number(name: str) -> int | None:
  """The number in an environment variable; None if it is not set."""
  text = os.environ.get(name, '')
  if not text:
    return None
  if not text.isdecimal():
    raise ValueError(f'The environment variable {name}={text!r} is not a'
                     ' number; wanted 0 or more. Correct it.')
  return int(text)


def index() -> int:
  """Index of this process, from 0."""
  return jax.process_index()


def is_primary() -> bool:
  """Whether this process accesses the workdir; true for a single process."""
  return index() == 0


def any_true(value: bool) -> bool:
  """Whether the value is true in any process. Collective."""
  if jax.process_count() == 1:
    return value
  return bool(np.any(multihost_utils.process_allgather(np.array([value]))))


def broadcast_from_primary(make: Callable[[], _T]) -> _T:
  """Calls a function in the primary process and returns its result in all.

  Collective. The function itself must not call anything collective, except
  `broadcast_from_primary`, which then only calls its own function.

  Args:
    make: Called in the primary process only. Its result must pickle, with NumPy
      arrays rather than JAX arrays.

  Raises:
    Exception: Whatever `make` raises, in all processes.
  """
  if jax.process_count() == 1 or _state.in_broadcast:
    return make()
  outcome = None
  if is_primary():
    _state.in_broadcast = True
    try:
      outcome = make(), None
    except Exception as error:  # pylint: disable=broad-exception-caught
      outcome = None, error
    finally:
      _state.in_broadcast = False
  # The same program pickles and unpickles within one run; no file is involved.
  data = _broadcast_bytes(None if outcome is None else pickle.dumps(outcome))
  value, error = outcome if outcome is not None else pickle.loads(data)
  if error is not None:
    _state.shared_error = error
    raise error
  return value


def raise_on_all(make: Callable[[], _T]) -> _T:
  """Calls a function in every process, and fails in all if it fails in one.

  Collective.

  Args:
    make: Called in every process.

  Returns:
    The result of this process.

  Raises:
    ValueError: `make` failed in another process; has the message of that error.
    Exception: Whatever `make` raises in this process.
  """
  if jax.process_count() == 1:
    return make()
  result, failure = None, None
  try:
    result = make()
  except Exception as error:  # pylint: disable=broad-exception-caught
    failure = error
  message = np.zeros(_HEADER, np.uint8)
  if failure is not None:
    text = (str(failure) or type(failure).__name__).encode()[:_HEADER]
    message[:len(text)] = np.frombuffer(text, np.uint8)
  messages = multihost_utils.process_allgather(message)
  for other, row in enumerate(messages):
    if row.any():
      text = row.tobytes().rstrip(b'\0').decode(errors='ignore')
      _state.shared_error = failure or ValueError(
          f'Process {other} failed: {text}')
      raise _state.shared_error
  return result


def abort(error: Exception, status: int) -> None:
  """Ends this process at once if the others would wait for it.

  Does nothing in a single process, or for an error that all processes have
  raised. Otherwise the others notice that this process is gone, and end too.

  Args:
    error: The error of this process.
    status: Exit status; 1 also prints the traceback.
  """
  if jax.process_count() > 1 and error is not _state.shared_error:
    if status == 1:
      traceback.print_exception(error)
    sys.stderr.flush()
    preemption.exit_now(status)


def disconnect() -> None:
  """Waits until all processes of the run end; does nothing in a single one."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def _broadcast_bytes(data: bytes | None) -> bytes:
  """Returns the bytes of the primary process in all.

  Args:
    data: The bytes in the primary process, None in the others.
  """
  header = np.zeros(_HEADER, np.uint8)
  room = _HEADER - _LENGTH
  if data is not None:
    start = len(data).to_bytes(_LENGTH, 'little') + data[:room]
    header[:len(start)] = np.frombuffer(start, np.uint8)
  header = multihost_utils.broadcast_one_to_all(header).tobytes()
  size = int.from_bytes(header[:_LENGTH], 'little')
  parts = [header[_LENGTH:]]
  for start in range(room, size, _CHUNK):
    length = min(_CHUNK, size - start)
    # Powers of two keep the number of compiled shapes small.
    chunk = np.zeros(1 << (length - 1).bit_length(), np.uint8)
    if data is not None:
      chunk[:length] = np.frombuffer(data, np.uint8, length, start)
    parts.append(
        multihost_utils.broadcast_one_to_all(chunk)[:length].tobytes())
  return b''.join(parts)[:size]
