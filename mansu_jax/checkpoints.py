"""Finished stages, kept with Orbax so that a run can go on after a stop."""

from __future__ import annotations

from collections.abc import Callable
import pathlib

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from mansu_jax import types


class Stages:
  """Results of stages by name, in one folder.

  Orbax writes to a temporary name and renames, so a stage that is found is
  whole.

  Args:
    root: folder of the checkpoints.
    resume: whether results found there are used.
  """

  def __init__(self, root: pathlib.Path, *, resume: bool):
    self._root = pathlib.Path(root).absolute()
    self._resume = resume
    self._checkpointer = ocp.PyTreeCheckpointer()

  def get(self, name: str, make: Callable[[], types.PyTree]) -> types.PyTree:
    """The stage's result: restored when there is one, else made and saved.

    Args:
      name: of the stage.
      make: computes a nested dict of arrays and numbers.

    Raises:
      OSError: it cannot be saved, as where the disk is full.
    """
    path = self._root / name
    if self._resume and path.exists():
      logging.info('%s: restored from %s', name, path)
      return self._restore(path)
    result = make()
    try:
      self._checkpointer.save(path, result, force=True)
    except (ValueError, OSError) as error:  # Tensorstore's are ValueErrors.
      raise OSError(f'{path} cannot be saved ({error})') from error
    return result

  def _restore(self, path: pathlib.Path) -> types.PyTree:
    """As NumPy: bound to no device, so that nothing compiles anew for it."""
    saved = self._checkpointer.metadata(path).item_metadata.tree
    to_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    return self._checkpointer.restore(path, restore_args=to_numpy)
