"""The workdir, of the first process alone: locked, and opened with checks.

At every moment, where there is a `record.json`, `flags.txt` is that of its run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import functools
import json
import pathlib
import shutil
from typing import Any

from absl import logging

from mansu_jax.config import flags as run_flags
from mansu_jax.config import run as run_config
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.runtime import lock
from mansu_jax.runtime import processes

_IDENTITY, _HASHES, _RECORD = 'flags.txt', 'hashes.json', 'record.json'
_ENVIRONMENTS = 'environments.json'
# These may differ when a run goes on: they change no figure but by rounding.
_SAME_RUN = tuple(f'--{prefix}{flag}' for prefix in ('', 'no') for flag in (
    'debug', 'profile', 'fail_on_verdict', 'unlearn_save_every',
    'mesh_data', 'mesh_fsdp', 'mesh_tensor', 'mesh_distributed',
    'mesh_join_seconds'))


def locked(flow: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """Has a flow hold the lock of its config's workdir; errors as `lock.held`."""
  @functools.wraps(flow)
  def run(config):
    with contextlib.ExitStack() as stack:
      if config.workdir:  # Else it is refused, as one among other errors.
        processes.broadcast_from_primary(lambda: stack.enter_context(
            lock.held(pathlib.Path(config.workdir))))
      return flow(config)

  return run


def open_workdir(
    config: run_config.RunConfig, hashes: Mapping[str, str]) -> pathlib.Path:
  """Creates or reopens the workdir and writes in it what its run is.

  That is `flags.txt`, and the SHA-256 of everything that the run reads in
  `hashes.json`: finished stages are of use to the same flags on the same bytes
  only. Flags of a finished run stay until `note_flags`.

  Args:
    config: the run's.
    hashes: `{name: SHA-256}` of data files and weights.

  Raises:
    ValueError: as `check_workdir`, or a finished stage is of other bytes; or
      another process has read other bytes than the first.
  """
  _check_same_bytes(hashes)
  return processes.broadcast_from_primary(lambda: _open_workdir(config, hashes))


def _check_same_bytes(hashes: Mapping[str, str]) -> None:
  """Raises ValueError where processes do not run on the same."""
  wanted = processes.broadcast_from_primary(lambda: dict(hashes))

  def check():
    for name in sorted(wanted.keys() | hashes.keys()):
      if wanted.get(name) != hashes.get(name):
        raise ValueError(
            f'{name!r} has SHA-256 {_short(hashes.get(name))} in process'
            f' {processes.number()}, but {_short(wanted.get(name))} in process'
            ' 0; wanted the same everywhere. Give all hosts the same files.')

  processes.raise_on_all(check)


def _open_workdir(
    config: run_config.RunConfig, hashes: Mapping[str, str]) -> pathlib.Path:
  root = check_workdir(config)
  root.mkdir(parents=True, exist_ok=True)
  _check_made_of(root, hashes, every=True)
  for path in root.glob('.model.*'):  # Of a process killed while it wrote.
    shutil.rmtree(path)
  files.write_json(root / _HASHES, dict(hashes))
  if not (root / _RECORD).exists():
    files.write_text(root / _IDENTITY, run_flags.to_flagfile(config))
  return root


def note_flags(config: run_config.RunConfig, root: pathlib.Path) -> None:
  """Makes ready for the record: `flags.txt` becomes that of its run.

  A record that is of other flags, which change no figure, goes first.

  Args:
    config: the run's.
    root: from `open_workdir`.

  Raises:
    ValueError: the workdir is another run's now.
  """
  def note():
    lock.check(root)
    flags, path = run_flags.to_flagfile(config), root / _IDENTITY
    if not path.exists() or path.read_text(encoding='utf-8') != flags:
      (root / _RECORD).unlink(missing_ok=True)
      files.write_text(path, flags)

  processes.broadcast_from_primary(note)


def _check_made_of(
    root: pathlib.Path, hashes: Mapping[str, str], *, every: bool) -> None:
  """Raises ValueError where finished stages were made of other bytes.

  Args:
    root: the workdir.
    hashes: of what has been read.
    every: whether that is everything.
  """
  made_of = root / _HASHES
  if not (_has_finished(root) and made_of.exists()):
    return
  found = json.loads(made_of.read_text(encoding='utf-8'))
  for name in sorted(hashes.keys() | (found.keys() if every else ())):
    if found.get(name) != hashes.get(name):
      raise ValueError(
          f'--workdir={root} holds stages that were made when {name!r} had'
          f' another content (SHA-256 {_short(found.get(name))}, now'
          f' {_short(hashes.get(name))}); wanted the same. Give a new'
          ' folder, or put the old content back.')


def _short(digest: str | None) -> str:
  return f'{digest[:12]}...' if digest else 'none'


def _has_finished(root: pathlib.Path) -> bool:
  """Whether there is a finished stage to lose or to confuse."""
  return (root / _RECORD).exists() or _has_stages(root)


def _has_stages(root: pathlib.Path) -> bool:
  """Whether there is a stage to go on from."""
  checkpoints = root / 'checkpoints'
  return checkpoints.is_dir() and any(
      files.UNFINISHED not in path.name for path in checkpoints.iterdir())


def note_environment(root: pathlib.Path) -> None:
  """Keeps where a run goes on; warns where that is not where it was left.

  On other devices, or by another version, sums round otherwise.

  Args:
    root: from `open_workdir`.
  """
  def note():
    here, path = environment.here(), root / _ENVIRONMENTS
    before = _environments(root) if _has_stages(root) else []
    found = before and environment.differences(before[-1], here)
    if found:
      logging.warning(
          '%s goes on elsewhere than it was left (%s): what is still to be done'
          ' may round otherwise.', root, found)
    files.write_json(path, [
        *(each for each in before if environment.differences(each, here)),
        here])

  processes.broadcast_from_primary(note)


def earlier_environments(root: pathlib.Path) -> list[dict[str, Any]]:
  """Those, other than this one, that a run with finished stages was in."""
  return processes.broadcast_from_primary(lambda: _environments(root)[:-1])


def _environments(root: pathlib.Path) -> list[dict[str, Any]]:
  path = root / _ENVIRONMENTS
  try:
    return list(json.loads(path.read_text('utf-8'))) if path.exists() else []
  except ValueError:
    logging.warning('%s is damaged: where the run was before is lost.', path)
    return []


def check_workdir(
    config: run_config.RunConfig, hashes: Mapping[str, str] | None = None
) -> pathlib.Path:
  """Finds that the workdir can be made, or gone on in; claims nothing yet.

  A folder that is not there is not left behind: the run may yet be refused.

  Args:
    config: the run's.
    hashes: `{name: SHA-256}` of what has been read so far.

  Raises:
    ValueError: no workdir given, not writable, holds other files, holds
      another run's finished stages, or such of other bytes, or holds some and
      --noresume was given.
  """
  def check():
    root = _check_workdir(config)
    _check_made_of(root, hashes or {}, every=False)
    return root

  return processes.broadcast_from_primary(check)


def _check_workdir(config: run_config.RunConfig) -> pathlib.Path:
  if not config.workdir:
    raise ValueError('No workdir: give --workdir=DIR, a new or empty folder'
                     ' for the outputs.')
  root = pathlib.Path(config.workdir)
  run_config.check_text('workdir', str(root.absolute()))
  try:
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    probe = root / '.write_probe'
    probe.touch()
    probe.unlink()
    for path in missing:
      path.rmdir()
  except OSError as error:
    raise lock.cannot_write(root, error) from error
  wanted = run_flags.to_flagfile(config)
  identity = root / _IDENTITY
  if identity.exists() and _has_finished(root):
    _check_same_run(root, identity.read_text(encoding='utf-8'), wanted,
                    config.resume)
  elif root.exists() and not identity.exists():
    others = sorted({path.name for path in root.iterdir()} - {lock.NAME})
    if others:
      raise ValueError(
          f'--workdir={root} holds files of something else ({others[0]!r} and'
          f' so on) and no {_IDENTITY} of a run; give a new or empty folder.')
  return root


def _check_same_run(
    root: pathlib.Path, found: str, wanted: str, resume: bool) -> None:
  if not resume:
    raise ValueError(f'--workdir={root} already holds a run and --noresume was'
                     ' given; give a new folder, or --resume.')
  only = lambda one, other: [
      line for line in one.splitlines()
      if line not in other.splitlines() and not line.startswith(_SAME_RUN)]
  theirs, ours = only(found, wanted), only(wanted, found)
  if theirs or ours:
    first = lambda lines: lines[0] if lines else 'none'
    raise ValueError(
        f'--workdir={root} holds another run; the first flag that differs is'
        f' {first(theirs)} there and {first(ours)} here. Give a new folder.')
