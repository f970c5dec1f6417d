"""Reads and verifies checkpoints of Orbax, and cleans up after failures.

`sign` adds a SHA-256 of the arrays before a tree is saved; `read` verifies it,
because Orbax does not detect altered bytes. A damaged checkpoint is renamed,
with a warning, so that its caller computes it again. The primary process alone
calls these functions, except `sign`, which is collective.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import errno
import hashlib
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
from mansu_jax.runtime import sharding

# Orbax options with which the primary process waits for no other.
PRIMARY_ONLY = {'multiprocessing_options': ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0})}
_DIGEST = '_sha256'  # Key of the digest, beside the keys of the tree.
_DAMAGED = '.damaged'
# System errors that do not mean that the bytes of a file are damaged.
_TRANSIENT_ERRORS = frozenset((
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT))
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # In TensorStore's messages.


def sign(tree: types.PyTree) -> types.PyTree:
  """Returns a dict of arrays with its digest. Collective.

  Numbers become arrays, and arrays of several processes are gathered.
  """
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


def read(
    path: pathlib.Path, item: str = '', *, then: str,
    check: Callable[[types.PyTree], Any] = lambda found: None
) -> types.PyTree | None:
  """Reads a signed checkpoint; renames a damaged one and returns None.

  Args:
    path: Folder of the checkpoint.
    item: Folder within `path` that holds the tree; '' for `path` itself.
    then: What the caller does after damage, for the warning.
    check: Raises an error if the tree is not what the caller wants.

  Raises:
    Exception: The error of the system, if it does not mean damage.
  """
  try:
    found = dict(_restore(path / item))
    wanted = found.pop(_DIGEST, None)
    if wanted is None or not np.array_equal(_digest(found), wanted):
      raise ValueError('its bytes differ from those saved')
    check(found)
    return found
  except Exception as error:  # pylint: disable=broad-exception-caught
    if _is_transient(error):
      raise
    lines = str(error).strip().splitlines()  # Orbax raises many types.
    logging.warning(
        '%s is damaged: %s (%s: %s); it was renamed to *%s', path, then,
        type(error).__name__, lines[0] if lines else '', _DAMAGED)
    _rename_damaged(path)
    return None


def _is_transient(error: Exception) -> bool:
  """Whether an error may disappear, and does not mean damaged bytes."""
  if isinstance(error, (MemoryError, PermissionError)):
    return True
  match = _OS_ERROR.search(str(error))
  number = int(match[1]) if match else getattr(error, 'errno', None)
  return number in _TRANSIENT_ERRORS


def _restore(path: pathlib.Path) -> types.PyTree:
  """Reads NumPy arrays, which are bound to no device.

  Programs that take them need no compilation for another sharding.
  """
  handler = ocp.PyTreeCheckpointHandler(**PRIMARY_ONLY)
  checkpointer = ocp.Checkpointer(handler, **PRIMARY_ONLY)
  saved = checkpointer.metadata(path).item_metadata
  if saved is None:
    raise ValueError('it has no metadata of its arrays')
  to_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree)
  return checkpointer.restore(path, restore_args=to_numpy)


def _rename_damaged(path: pathlib.Path) -> None:
  damaged = path.with_name(f'{path.name}{_DAMAGED}')
  remove(damaged)
  path.rename(damaged)


def remove(path: pathlib.Path) -> None:
  """Removes a file or folder if it exists."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def remove_unfinished(root: pathlib.Path, name: str = '*') -> None:
  """Removes folders of Orbax whose save was interrupted.

  Args:
    root: Folder of the checkpoints.
    name: Name of a checkpoint, or a pattern.
  """
  for pattern in (f'{name}{files.UNFINISHED}*', f'{name}/*{files.UNFINISHED}*'):
    for path in root.glob(pattern):
      shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def saving(path: pathlib.Path):
  """Converts errors of saving to OSError and removes the unfinished files."""
  try:
    yield
  except Exception as error:  # TensorStore raises ValueError, among others.
    remove_unfinished(path.parent, path.name)
    raise OSError(f'{path} cannot be saved ({error})') from error


@contextlib.contextmanager
def closing(failed: bool):
  """Only logs an error of saving if the block follows another error."""
  try:
    yield
  except OSError as error:
    if not failed:
      raise
    logging.error('%s', error)
