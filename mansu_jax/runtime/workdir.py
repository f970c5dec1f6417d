"""Opens the workdir of a run and checks that it belongs to this run.

Decorate a flow with `locked`. The flow calls `check_workdir` early, then
`open_workdir`, and `write_flags` just before it writes the record. Only the
primary process accesses the workdir; the functions are collective.

Whenever `record.json` exists, `flags.txt` holds the flags of its run.
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

from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as run_config
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.runtime import lock
from mansu_jax.runtime import processes

_FLAGS, _HASHES, _RECORD = 'flags.txt', 'hashes.json', 'record.json'
_ENVIRONMENTS = 'environments.json'
# Flags that a resumed run may change: they affect results by rounding at most.
_CHANGEABLE = tuple(f'--{prefix}{flag}' for prefix in ('', 'no') for flag in (
    'debug', 'profile', 'fail_on_verdict', 'unlearn_save_every',
    'mesh_data', 'mesh_fsdp', 'mesh_tensor', 'mesh_distributed',
    'mesh_join_seconds'))


def locked(flow: Callable[..., Any]) -> Callable[..., Any]:
  """Decorator: holds the lock of the workdir while a flow runs.

  Args:
    flow: Function of a `RunConfig` and options.

  Returns:
    The function, which also raises what `lock.held` raises. Without a workdir
    it takes no lock; the flow then reports the missing flag.
  """
  @functools.wraps(flow)
  def run(config, **options):
    with contextlib.ExitStack() as stack:
      if config.workdir:
        processes.broadcast_from_primary(lambda: stack.enter_context(
            lock.held(pathlib.Path(config.workdir))))
      return flow(config, **options)

  return run


def open_workdir(
    config: run_config.RunConfig, hashes: Mapping[str, str]) -> pathlib.Path:
  """Creates or reopens the workdir, and writes the identity of its run.

  The identity is `flags.txt` and `hashes.json`, the SHA-256 of all files that
  the run reads: a finished stage is valid only for the same flags and the same
  bytes. The flags of a finished run stay until `write_flags`.

  Args:
    config: Configuration of the run.
    hashes: `{name: SHA-256}` of the data files and weights.

  Returns:
    The path of the workdir.

  Raises:
    ValueError: As `check_workdir`; or a finished stage comes from other bytes;
      or another process has read other bytes than the primary one.
  """
  _check_equal_hashes(hashes)
  return processes.broadcast_from_primary(lambda: _open_workdir(config, hashes))


def _check_equal_hashes(hashes: Mapping[str, str]) -> None:
  """Raises ValueError unless all processes have read the same bytes."""
  wanted = processes.broadcast_from_primary(lambda: dict(hashes))

  def check():
    for name in sorted(wanted.keys() | hashes.keys()):
      if wanted.get(name) != hashes.get(name):
        raise ValueError(
            f'{name!r} has SHA-256 {_short(hashes.get(name))} in process'
            f' {processes.index()}, but {_short(wanted.get(name))} in process'
            ' 0; wanted the same everywhere. Give all hosts the same files.')

  processes.raise_on_all(check)


def _open_workdir(
    config: run_config.RunConfig, hashes: Mapping[str, str]) -> pathlib.Path:
  root = check_workdir(config)
  root.mkdir(parents=True, exist_ok=True)
  _check_hashes(root, hashes, complete=True)
  for path in root.glob('.model.*'):  # Left by a process that was killed.
    shutil.rmtree(path)
  if not (root / _RECORD).exists():  # First: it makes the folder a workdir.
    files.write_text(root / _FLAGS, flags_lib.to_flagfile(config))
  files.write_json(root / _HASHES, dict(hashes))
  return root


def write_flags(config: run_config.RunConfig, root: pathlib.Path) -> None:
  """Writes `flags.txt` before the record is written.

  Deletes an older record first if its run had other flags.

  Args:
    config: Configuration of the run.
    root: From `open_workdir`.

  Raises:
    ValueError: Another run has taken over the workdir.
  """
  def write():
    lock.check_held(root)
    flags, path = flags_lib.to_flagfile(config), root / _FLAGS
    if not path.exists() or path.read_text(encoding='utf-8') != flags:
      (root / _RECORD).unlink(missing_ok=True)
      files.write_text(path, flags)

  processes.broadcast_from_primary(write)


def _check_hashes(
    root: pathlib.Path, hashes: Mapping[str, str], *, complete: bool) -> None:
  """Raises ValueError if finished stages come from other bytes.

  Args:
    root: The workdir.
    hashes: `{name: SHA-256}` of the files read so far.
    complete: Whether these are all files of the run.
  """
  path = root / _HASHES
  if not (_has_results(root) and path.exists()):
    return
  found = json.loads(path.read_text(encoding='utf-8'))
  for name in sorted(hashes.keys() | (found.keys() if complete else ())):
    if found.get(name) != hashes.get(name):
      raise ValueError(
          f'--workdir={root} holds stages computed from another version of'
          f' {name!r} (SHA-256 {_short(found.get(name))} then,'
          f' {_short(hashes.get(name))} now). Give a new folder, or restore the'
          ' file.')


def _short(digest: str | None) -> str:
  return f'{digest[:12]}...' if digest else 'none'


def _has_results(root: pathlib.Path) -> bool:
  """Whether the workdir holds a record, a model or a finished stage."""
  return any((root / name).exists() for name in (_RECORD, 'model')) or (
      _has_stages(root))


def _has_stages(root: pathlib.Path) -> bool:
  """Whether the workdir holds a finished stage, from which a run can resume."""
  checkpoints = root / 'checkpoints'
  return checkpoints.is_dir() and any(
      files.UNFINISHED not in path.name for path in checkpoints.iterdir())


def is_finished(
    config: run_config.RunConfig, hashes: Mapping[str, str]) -> bool:
  """Whether the workdir holds the record of this run. Collective.

  Args:
    config: Configuration of the run.
    hashes: `{name: SHA-256}` of all files that it reads.
  """
  def check():
    root = pathlib.Path(config.workdir)
    if not all((root / name).exists() for name in (_RECORD, _FLAGS, _HASHES)):
      return False
    theirs, ours = _differing(
        (root / _FLAGS).read_text('utf-8'), flags_lib.to_flagfile(config))
    return not (theirs or ours) and json.loads(
        (root / _HASHES).read_text('utf-8')) == dict(hashes)

  return processes.broadcast_from_primary(check)


def _differing(found: str, wanted: str) -> tuple[list[str], list[str]]:
  """Lines of one flagfile only, but for flags that a resumed run may change."""
  only = lambda one, other: [
      line for line in one.splitlines()
      if line not in other.splitlines() and not line.startswith(_CHANGEABLE)]
  return only(found, wanted), only(wanted, found)


def record_environment(root: pathlib.Path) -> None:
  """Adds the current environment to the workdir's list.

  Logs a warning if a run resumes in another environment: other devices or
  versions may round differently.

  Args:
    root: From `open_workdir`.
  """
  def record():
    current, path = environment.describe(), root / _ENVIRONMENTS
    earlier = _environments(root) if _has_stages(root) else []
    found = earlier and environment.differences(earlier[-1], current)
    if found:
      logging.warning(
          '%s resumes in another environment (%s): the remaining stages may'
          ' round differently.', root, found)
    files.write_json(path, [
        *(each for each in earlier if environment.differences(each, current)),
        current])

  processes.broadcast_from_primary(record)


def earlier_environments(root: pathlib.Path) -> list[dict[str, Any]]:
  """Other environments in which stages of the run were computed."""
  return processes.broadcast_from_primary(lambda: _environments(root)[:-1])


def _environments(root: pathlib.Path) -> list[dict[str, Any]]:
  path = root / _ENVIRONMENTS
  try:
    return list(json.loads(path.read_text('utf-8'))) if path.exists() else []
  except ValueError:
    logging.warning(
        '%s is damaged: the list of earlier environments is lost.', path)
    return []


def check_workdir(
    config: run_config.RunConfig, hashes: Mapping[str, str] | None = None
) -> pathlib.Path:
  """Checks that the workdir can be created, or resumed by this run.

  Leaves no new folder behind, because later checks may still refuse the run.

  Args:
    config: Configuration of the run.
    hashes: `{name: SHA-256}` of the files read so far.

  Returns:
    The path of the workdir.

  Raises:
    ValueError: No workdir was given; it is not writable; or it holds other
      files, finished stages of another run or of other bytes, or any while
      --noresume was given.
  """
  def check():
    root = _check_workdir(config)
    _check_hashes(root, hashes or {}, complete=False)
    return root

  return processes.broadcast_from_primary(check)


def _check_workdir(config: run_config.RunConfig) -> pathlib.Path:
  if not config.workdir:
    raise ValueError('No workdir: give --workdir=DIR, a new or empty folder'
                     ' for the outputs.')
  root = pathlib.Path(config.workdir)
  run_config.check_text('workdir', str(root.absolute()))
  _check_writable(root)
  wanted = flags_lib.to_flagfile(config)
  flags = root / _FLAGS
  if flags.exists() and _has_results(root):
    _check_same_run(
        root, flags.read_text(encoding='utf-8'), wanted, config.resume)
  elif root.exists() and not flags.exists():
    others = sorted({path.name for path in root.iterdir()} - {lock.NAME})
    if others:
      raise ValueError(
          f'--workdir={root} holds other files, such as {others[0]!r}, and no'
          f' {_FLAGS} of a run; give a new or empty folder.')
  return root


def _check_writable(root: pathlib.Path) -> None:
  """Raises ValueError if the folder cannot be created or written."""
  try:
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    probe = root / '.write_probe'
    probe.touch()
    probe.unlink()
    for path in missing:
      path.rmdir()
  except OSError as error:
    raise lock.not_writable_error(root, error) from error


def _check_same_run(
    root: pathlib.Path, found: str, wanted: str, resume: bool) -> None:
  """Raises ValueError unless a run may resume in a workdir.

  Args:
    root: The workdir.
    found: Text of its flagfile.
    wanted: Text of this run's flagfile.
    resume: Value of --resume.
  """
  if not resume:
    raise ValueError(f'--workdir={root} already holds a run, and --noresume was'
                     ' given; give a new folder, or --resume.')
  theirs, ours = _differing(found, wanted)
  if theirs or ours:
    first = lambda lines: lines[0] if lines else 'no such flag'
    raise ValueError(
        f'--workdir={root} holds another run: it has {first(theirs)}, this'
        f' command has {first(ours)} (first differences). Give a new folder.')
