"""Finished stages, and steps of a loop, kept so that a run can go on.

Orbax writes them in the background, each to a temporary name that it renames
when all is on the disk: what is found is whole. It does not tell whether bytes
were altered since, so that a SHA-256 of the arrays lies beside them. What is
damaged is set aside, with a warning, and made anew. Of several processes the
first reads and writes them: what is kept is small, and whole in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import errno
import hashlib
import json
import pathlib
import re
import shutil
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from mansu_jax import types
from mansu_jax.runtime import files
from mansu_jax.runtime import loop_state
from mansu_jax.runtime import preemption
from mansu_jax.runtime import processes
from mansu_jax.runtime import sharding

_DIGEST = '_sha256'  # Beside a stage's own keys.
_DAMAGED = '.damaged'
# Errors of the machine or its mounts, which say nothing of a file's bytes.
_NOT_OF_FILES = frozenset((
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT))
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # In TensorStore's messages.
_KEPT_STEPS = 2  # The newest, and one to fall back to.
_ITEM = 'default'  # Orbax's name of what a step holds.
_FIRST = {'multiprocessing_options': ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0})}  # Orbax waits for no other.


class NoCache:
  """Makes what is asked for and keeps nothing; `StageCache` has the methods."""

  def get_or_compute(
      self, name: str, make: Callable[[], types.PyTree], *,
      replaces: str | None = None) -> types.PyTree:
    """What `make` gives."""
    del name, replaces
    return make()

  def get_or_compute_json(self, name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, as it comes back from JSON."""
    del name
    return from_bytes(to_bytes(make()))


class StageCache(NoCache):
  """Results of stages by name, in one folder; a context manager.

  A save goes on in the background: its error comes out of the next save, of
  `wait`, or of the context's end. Folders left by a process that was killed
  while it wrote are removed first.

  Args:
    root: folder of the checkpoints, of one process at a time.
    resume: whether results found there are used.
  """

  def __init__(self, root: pathlib.Path, *, resume: bool):
    self._root = pathlib.Path(root).absolute()
    self._resume = resume
    handler = ocp.PyTreeCheckpointHandler(**_FIRST)
    self._checkpointer = processes.is_primary() and ocp.AsyncCheckpointer(
        handler, **_FIRST)
    self._saving: pathlib.Path | None = None
    self._replaced: list[pathlib.Path] = []
    processes.broadcast_from_primary(lambda: _remove_unfinished(self._root))

  def __enter__(self) -> StageCache:
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    try:
      with _closing(kind is not None):
        self._wait() if kind is not None else self.wait()
    finally:
      if self._checkpointer:
        with preemption.deferred():
          self._checkpointer.close()

  def get_or_compute(
      self, name: str, make: Callable[[], types.PyTree], *,
      replaces: str | None = None) -> types.PyTree:
    """The stage's result: restored when there is one, else made and saved.

    Args:
      name: of the stage.
      make: computes a nested dict of arrays (none of size 0) and numbers.
      replaces: name of `steps` that are of no use once this one is saved.

    Raises:
      OSError: it, or the one saved before it, cannot be saved, as where the
        disk is full.
      preemption.Stopped: the run has been told to stop.
    """
    preemption.check()
    path = self._root / name
    result = processes.broadcast_from_primary(lambda: self._find(path))
    if result is None:
      result = make()
      tree = _signed(result)
      processes.broadcast_from_primary(lambda: self._save(path, tree))
    if replaces:
      self._replaced.append(self._root / replaces)
    return result

  def get_or_compute_json(self, name: str, make: Callable[[], Any]) -> Any:
    """As `get`, of anything JSON-able, always as it comes back from there."""
    return from_bytes(self.get_or_compute(
        name, lambda: {'json': to_bytes(make())})[
        'json'])

  def steps(self, name: str, every: int) -> Steps:
    """Where a loop keeps its steps.

    Args:
      name: of the folder.
      every: steps from one save to the next; 0: only when told to stop.
    """
    root = self._root / name
    if not self._resume:
      processes.broadcast_from_primary(lambda: _remove(root))
    return Steps(root, every)

  def wait(self) -> None:
    """Waits for what is being saved; then removes what it replaces.

    Raises:
      OSError: it cannot be saved.
    """
    processes.broadcast_from_primary(self._wait)

  def _wait(self) -> None:
    with preemption.deferred():
      if self._saving is not None:
        with _saves(self._saving):
          self._checkpointer.wait_until_finished()
      for path in self._replaced:
        _remove(path)
      self._saving = None
      self._replaced.clear()

  def _find(self, path: pathlib.Path) -> types.PyTree | None:
    if path == self._saving:  # Asked for twice.
      self.wait()
    if not (self._resume and path.exists()):
      return None
    found = _read(path, then='it is made anew')
    if found is not None:
      logging.info('%s: restored from %s', path.name, path)
    return found

  def _save(self, path: pathlib.Path, tree: types.PyTree) -> None:
    self.wait()
    with preemption.deferred(), _saves(path):
      self._saving = path
      self._checkpointer.save(path, tree, force=True)


class Steps:
  """The newest steps of a loop, as its `Keeper`; a context manager.

  Args:
    root: their folder, of nothing else.
    every: steps from one save to the next; 0: only when told to stop. One that
      is due while the last is still being written is left out.
  """

  def __init__(self, root: pathlib.Path, every: int):
    self._root, self._every = root, every
    self._manager: ocp.CheckpointManager | None = None

  def __enter__(self) -> Steps:
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    with _closing(kind is not None):  # After an error, no other waits.
      if kind is not None:
        self._close()
      else:
        processes.broadcast_from_primary(self._close)

  def _close(self) -> None:
    if self._manager is not None:
      with _saves(self._root):
        self._manager.wait_until_finished()
      self._manager.close()

  def restore(
      self, like: types.PyTree
  ) -> tuple[types.PyTree, list[dict[str, float]]] | None:
    """The newest state that is whole; None where there is none.

    Args:
      like: what has the shapes and types of the carry.

    Returns:
      The carry, as NumPy arrays, and the history of the steps that led there.
    """
    found = processes.broadcast_from_primary(lambda: self._newest(like))
    return found and loop_state.unpack(found, like)

  def _newest(self, like: types.PyTree) -> types.PyTree | None:
    steps = sorted((int(path.name) for path in self._root.glob('*')
                    if path.name.isdecimal()), reverse=True)
    for step, before in zip(steps, [*steps[1:], 0]):
      then = f'going back to step {before}'
      check = lambda found: loop_state.unpack(found, like)
      found = _read(self._root / str(step), _ITEM, then=then, check=check)
      if found is not None:
        logging.info('%s: going on after step %d', self._root, step)
        return found
    return None

  def after(
      self, step: int, carry: types.PyTree,
      history: list[dict[str, float]]) -> None:
    """Saves the state after a step, where it is due.

    The arrays are copied at once and written in the background.

    Args:
      step: steps done.
      carry: pytree of arrays; the caller may give up their buffers.
      history: of all steps so far.

    Raises:
      preemption.Stopped: the run has been told to stop; the step is saved.
      OSError: the step, or one before it, cannot be saved.
    """
    stopping = preemption.stop_requested()
    due = self._every and step % self._every == 0
    if not stopping and (
        not due or processes.broadcast_from_primary(self._is_busy)):
      return
    state = _signed(loop_state.pack(carry, history))
    processes.broadcast_from_primary(lambda: self._save(step, state, stopping))
    if stopping:
      preemption.check()

  def _is_busy(self) -> bool:
    if self._manager is None:
      return False
    with _saves(self._root):
      self._manager.check_for_errors()
      return self._manager.is_saving_in_progress()

  def _save(self, step: int, state: types.PyTree, wait: bool) -> None:
    with _saves(self._root):  # This step or the one before: the error tells.
      if self._manager is None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._root, options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT_STEPS, enable_async_checkpointing=True,
                create=False, **_FIRST))
      self._manager.save(step, args=ocp.args.PyTreeSave(state), force=True)
      if wait:
        self._manager.wait_until_finished()
        logging.info('%s: step %d is saved', self._root, step)


def to_bytes(value: Any) -> np.ndarray:
  """JSON of a value, numbers of NumPy among them, as an array of bytes."""
  text = json.dumps(value, default=lambda number: number.item())
  return np.frombuffer(text.encode(), np.uint8)


def from_bytes(text: np.ndarray) -> Any:
  """Inverse of `to_bytes`."""
  return json.loads(text.tobytes())


def _signed(tree: types.PyTree) -> types.PyTree:
  """With the digest, numbers as arrays."""
  tree = jax.tree.map(
      lambda x: x if isinstance(x, jax.Array) and x.is_fully_addressable
      else np.asarray(sharding.to_host(x)), tree)
  return {**tree, _DIGEST: _digest(tree)}


def _digest(tree: types.PyTree) -> np.ndarray:
  """SHA-256 [32] of names, types, shapes and bytes, in the order of names."""
  found = hashlib.sha256()
  named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in (
      jax.tree_util.tree_flatten_with_path(tree)[0])}
  for name in sorted(named):
    leaf = named[name]
    found.update(f'{name} {leaf.dtype} {leaf.shape}\n'.encode())
    found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
  return np.frombuffer(found.digest(), np.uint8)


def _read(
    path: pathlib.Path, item: str = '', *, then: str,
    check: Callable[[types.PyTree], Any] = lambda found: None
) -> types.PyTree | None:
  """What was saved; None where that is damaged, which is then set aside.

  Args:
    path: what is set aside.
    item: what is read of it.
    then: what happens where it is damaged, for the warning.
    check: raises where it is not what is wanted.
  """
  try:
    found = dict(_restore(path / item))
    wanted = found.pop(_DIGEST, None)
    if wanted is None or not np.array_equal(_digest(found), wanted):
      raise ValueError('its bytes are not those that were saved')
    check(found)
    return found
  except Exception as error:  # pylint: disable=broad-exception-caught
    if _is_of_machine(error):
      raise
    lines = str(error).strip().splitlines()  # Orbax raises all sorts.
    logging.warning(
        '%s is damaged: %s (%s: %s); it is now called *%s', path, then,
        type(error).__name__, lines[0] if lines else '', _DAMAGED)
    _set_aside(path)
    return None


def _is_of_machine(error: Exception) -> bool:
  """Whether an error says nothing of the files that were read."""
  if isinstance(error, (MemoryError, PermissionError)):
    return True
  told = _OS_ERROR.search(str(error))
  number = int(told[1]) if told else getattr(error, 'errno', None)
  return number in _NOT_OF_FILES


def _restore(path: pathlib.Path) -> types.PyTree:
  """As NumPy: bound to no device, so that nothing compiles anew for it."""
  handler = ocp.PyTreeCheckpointHandler(**_FIRST)
  checkpointer = ocp.Checkpointer(handler, **_FIRST)
  saved = checkpointer.metadata(path).item_metadata
  if saved is None:
    raise ValueError('there is no account of its arrays')
  to_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree)
  return checkpointer.restore(path, restore_args=to_numpy)


def _set_aside(path: pathlib.Path) -> None:
  aside = path.with_name(f'{path.name}{_DAMAGED}')
  _remove(aside)
  path.rename(aside)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _remove_unfinished(root: pathlib.Path, name: str = '*') -> None:
  """Removes what Orbax left of a stage, or steps, that it was writing."""
  for pattern in (f'{name}{files.UNFINISHED}*', f'{name}/*{files.UNFINISHED}*'):
    for path in root.glob(pattern):
      shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _saves(path: pathlib.Path):
  """Errors of saving as OSError with the path; what is half written goes."""
  try:
    yield
  except Exception as error:  # Tensorstore's are ValueErrors, others wrapped.
    _remove_unfinished(path.parent, path.name)
    raise OSError(f'{path} cannot be saved ({error})') from error


@contextlib.contextmanager
def _closing(failed: bool):
  """Where something has failed already, a save's error is only logged."""
  try:
    yield
  except OSError as error:
    if not failed:
      raise
    logging.error('%s', error)
