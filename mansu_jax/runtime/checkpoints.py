"""Saves finished stages and the steps of a loop, so that a run can resume.

`StageCache.get_or_compute` returns a saved result or computes and saves it;
`StageCache.steps` saves the state of a loop every few steps. `NoCache` has the
interface of a cache and saves nothing.

Orbax saves in the background, under a temporary name that it replaces when the
checkpoint is complete. Only the primary process reads and writes checkpoints;
they are small, and every process holds all of their data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import hashlib
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np
import orbax.checkpoint as ocp

from mansu_jax import types
from mansu_jax.runtime import checkpoint_io
from mansu_jax.runtime import loop_state
from mansu_jax.runtime import preemption
from mansu_jax.runtime import processes

_MAX_STEPS = 2  # The newest step, and one to fall back to.
_ITEM = 'default'  # Orbax's name of the tree of a step.


class NoCache:
  """Computes every result and saves none."""

  def get_or_compute(
      self, name: str, make: Callable[[], types.PyTree], *,
      replaces: str | None = None, of_base: bool = False,
      inputs: Sequence[np.ndarray] = ()) -> types.PyTree:
    """Returns the result of `make`."""
    del name, replaces, of_base, inputs
    return make()

  def get_or_compute_json(
      self, name: str, make: Callable[[], Any], *, of_base: bool = False,
      inputs: Sequence[np.ndarray] = ()) -> Any:
    """Returns the result of `make`, converted to JSON and back."""
    del name, of_base, inputs
    return from_bytes(to_bytes(make()))


class StageCache(NoCache):
  """Saves the results of stages by name, in one folder; a context manager.

  Saves run in the background. An error of a save is raised by the next save, by
  `wait`, or at the end of the context. The constructor removes folders left by
  a process that was killed during a save.

  Args:
    root: Folder of the checkpoints; one process at a time may use it.
    resume: Whether to use the results found there.
    shared: Folder of the results that follow from the base alone, if the runs
      of a comparison share them; they are always used.
  """

  def __init__(
      self, root: pathlib.Path, *, resume: bool,
      shared: pathlib.Path | None = None):
    self._root = pathlib.Path(root).absolute()
    self._shared = shared and pathlib.Path(shared).absolute()
    self._resume = resume
    handler = ocp.PyTreeCheckpointHandler(**checkpoint_io.PRIMARY_ONLY)
    self._checkpointer = processes.is_primary() and ocp.AsyncCheckpointer(
        handler, **checkpoint_io.PRIMARY_ONLY)
    self._saving: pathlib.Path | None = None
    self._replaced: list[pathlib.Path] = []
    processes.broadcast_from_primary(self._remove_unfinished)

  def _remove_unfinished(self) -> None:
    for path in filter(None, (self._root, self._shared)):
      checkpoint_io.remove_unfinished(path)

  def __enter__(self) -> StageCache:
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    try:
      with checkpoint_io.closing(kind is not None):
        self._wait() if kind is not None else self.wait()
    finally:
      if self._checkpointer:
        with preemption.deferred():
          self._checkpointer.close()

  def get_or_compute(
      self, name: str, make: Callable[[], types.PyTree], *,
      replaces: str | None = None, of_base: bool = False,
      inputs: Sequence[np.ndarray] = ()) -> types.PyTree:
    """Returns the saved result of a stage, or computes and saves it.

    Collective.

    Args:
      name: Name of the stage.
      make: Computes a nested dict of numbers and nonempty arrays.
      replaces: Name of the `steps` to delete once this result is saved.
      of_base: Whether the result follows from the base, the data, the
        evaluation, the seed and `inputs` alone.
      inputs: Arrays that tell shared results of one name apart.

    Raises:
      OSError: This result, or the one before it, cannot be saved.
      preemption.Stopped: A signal asked the run to stop.
    """
    preemption.check()
    is_shared = of_base and self._shared is not None
    path = self._shared / _with_digest(name, inputs) if is_shared else (
        self._root / name)
    result = processes.broadcast_from_primary(
        lambda: self._find(path) if self._resume or is_shared else None)
    if result is None:
      result = make()
      tree = checkpoint_io.sign(result)
      processes.broadcast_from_primary(lambda: self._save(path, tree))
    if replaces:
      self._replaced.append(self._root / replaces)
    return result

  def get_or_compute_json(
      self, name: str, make: Callable[[], Any], *, of_base: bool = False,
      inputs: Sequence[np.ndarray] = ()) -> Any:
    """As `get_or_compute`, for a JSON-able result.

    The result is always converted to JSON and back, saved or not.
    """
    saved = self.get_or_compute(
        name, lambda: {'json': to_bytes(make())}, of_base=of_base,
        inputs=inputs)
    return from_bytes(saved['json'])

  def steps(self, name: str, every: int) -> StepCheckpoints:
    """The checkpoints of a loop.

    Args:
      name: Name of their folder.
      every: Steps between saves; 0: save only when a signal stops the run.
    """
    root = self._root / name
    if not self._resume:
      processes.broadcast_from_primary(lambda: checkpoint_io.remove(root))
    return StepCheckpoints(root, every)

  def wait(self) -> None:
    """Waits for the running save, then deletes the steps that it replaces.

    Raises:
      OSError: The save failed.
    """
    processes.broadcast_from_primary(self._wait)

  def _wait(self) -> None:
    with preemption.deferred():
      if self._saving is not None:
        with checkpoint_io.saving(self._saving):
          self._checkpointer.wait_until_finished()
      for path in self._replaced:
        checkpoint_io.remove(path)
      self._saving = None
      self._replaced.clear()

  def _find(self, path: pathlib.Path) -> types.PyTree | None:
    if path == self._saving:  # The same stage again.
      self.wait()
    if not path.exists():
      return None
    found = checkpoint_io.read(path, then='it is computed again')
    if found is not None:
      logging.info('%s: restored from %s', path.name, path)
    return found

  def _save(self, path: pathlib.Path, tree: types.PyTree) -> None:
    self.wait()
    with preemption.deferred(), checkpoint_io.saving(path):
      self._saving = path
      self._checkpointer.save(path, tree, force=True)


class StepCheckpoints:
  """Saves the newest steps of a loop; a context manager.

  Implements the protocol `unlearn.loop.Keeper`.

  Args:
    root: Folder of these checkpoints only.
    every: Steps between saves; 0: save only when a signal stops the run. A save
      is skipped if the previous one is still running.
  """

  def __init__(self, root: pathlib.Path, every: int):
    self._root, self._every = root, every
    self._manager: ocp.CheckpointManager | None = None

  def __enter__(self) -> StepCheckpoints:
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    with checkpoint_io.closing(kind is not None):
      if kind is not None:  # The other processes may have failed elsewhere.
        self._close()
      else:
        processes.broadcast_from_primary(self._close)

  def _close(self) -> None:
    if self._manager is not None:
      with checkpoint_io.saving(self._root):
        self._manager.wait_until_finished()
      self._manager.close()

  def restore(
      self, like: types.PyTree
  ) -> tuple[types.PyTree, list[dict[str, float]]] | None:
    """Restores the newest undamaged step; None if there is none. Collective.

    Args:
      like: Pytree with the structure, shapes and types of the carry.

    Returns:
      The carry, as NumPy arrays, and the history of all steps up to it.
    """
    found = processes.broadcast_from_primary(lambda: self._newest(like))
    return found and loop_state.unpack(found, like)

  def _newest(self, like: types.PyTree) -> types.PyTree | None:
    steps = sorted((int(path.name) for path in self._root.glob('*')
                    if path.name.isdecimal()), reverse=True)
    for step, before in zip(steps, [*steps[1:], 0]):
      found = checkpoint_io.read(
          self._root / str(step), _ITEM, then=f'going back to step {before}',
          check=lambda found: loop_state.unpack(found, like))
      if found is not None:
        logging.info('%s: resuming after step %d', self._root, step)
        return found
    return None

  def after(
      self, step: int, carry: types.PyTree,
      history: list[dict[str, float]]) -> None:
    """Saves the state after a step if a save is due. Collective.

    Copies the arrays at once and writes them in the background.

    Args:
      step: Number of finished steps.
      carry: Pytree of arrays; the caller may donate their buffers afterwards.
      history: Metrics of all steps so far.

    Raises:
      preemption.Stopped: A signal asked the run to stop; the step is saved.
      OSError: This step, or one before it, cannot be saved.
    """
    stopping = preemption.stop_requested()
    due = self._every and step % self._every == 0
    if not stopping and (
        not due or processes.broadcast_from_primary(self._is_busy)):
      return
    state = checkpoint_io.sign(loop_state.pack(carry, history))
    processes.broadcast_from_primary(lambda: self._save(step, state, stopping))
    if stopping:
      preemption.check()

  def _is_busy(self) -> bool:
    if self._manager is None:
      return False
    with checkpoint_io.saving(self._root):
      self._manager.check_for_errors()
      return self._manager.is_saving_in_progress()

  def _save(self, step: int, state: types.PyTree, wait: bool) -> None:
    with checkpoint_io.saving(self._root):  # Or the error of the step before.
      if self._manager is None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._root, options=ocp.CheckpointManagerOptions(
                max_to_keep=_MAX_STEPS, enable_async_checkpointing=True,
                create=False, **checkpoint_io.PRIMARY_ONLY))
      self._manager.save(step, args=ocp.args.PyTreeSave(state), force=True)
      if wait:
        self._manager.wait_until_finished()
        logging.info('%s: step %d is saved', self._root, step)


def _with_digest(name: str, inputs: Sequence[np.ndarray]) -> str:
  """The name, and what tells the inputs apart, if there are any."""
  if not inputs:
    return name
  digest = hashlib.sha256()
  for array in map(np.ascontiguousarray, inputs):
    digest.update(f'{array.dtype} {array.shape};'.encode())
    digest.update(array.data)
  return f'{name}_{digest.hexdigest()[:16]}'


def to_bytes(value: Any) -> np.ndarray:
  """Converts a JSON-able value, with NumPy numbers allowed, to bytes [n]."""
  text = json.dumps(value, default=lambda number: number.item())
  return np.frombuffer(text.encode(), np.uint8)


def from_bytes(data: np.ndarray) -> Any:
  """Inverse of `to_bytes`."""
  return json.loads(data.tobytes())
