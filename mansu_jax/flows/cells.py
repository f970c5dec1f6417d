"""The runs of a comparison or a search: each is an ordinary run.

Each has a workdir of its own within that of the whole, so that a stopped
comparison resumes, and finished cells are read. What follows from the base
alone, such as its answers, is computed once for all cells of a seed. Peak memory
in the record of a cell is that of the whole so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import logging
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from mansu_jax.config import fields
from mansu_jax.config import flags as flags_lib
from mansu_jax.config import mode_checks
from mansu_jax.config import run as run_config
from mansu_jax.flows import unlearn
from mansu_jax.models.io import loading
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.runtime import processes
from mansu_jax.runtime import workdir
from mansu_jax.stages import checks
from mansu_jax.unlearn import loop

_DIVERGED = 'diverged.json'
# What all cells share, so that their figures compare.
_SHARED = ('model', 'data', 'eval', 'quant_schemes', 'export_dtype')
_BASE = 'base'  # Folder of what follows from these, and the seed, alone.

# Of the cache of compiled programs: reading the smallest beats compiling it.
_KEEP_ALL = {'jax_persistent_cache_min_compile_time_secs': 0.0,
             'jax_persistent_cache_min_entry_size_bytes': -1}


class Cell(NamedTuple):
  """A run within a comparison or a search.

  Attributes:
    name: of its method or trial.
    config: its own.
    whole: the workdir of the whole.
  """

  name: str
  config: run_config.RunConfig
  whole: pathlib.Path

  @property
  def root(self) -> pathlib.Path:
    """Its workdir."""
    return pathlib.Path(self.config.workdir)


def make(
    config: run_config.RunConfig, name: str, folder: str, *args: str,
    seed: int, where: str) -> Cell:
  """A cell with the flags of the command and its own.

  Args:
    config: of the whole.
    name: of the cell.
    folder: of its workdir, within that of the whole.
    *args: its own flags, as on the command line.
    seed: of the cell.
    where: what an error names: a file or a flag.

  Raises:
    ValueError: a flag is unknown, has no effect, contradicts another, or is one
      that all cells share.
  """
  defaults = flags_lib.to_flagfile(run_config.RunConfig()).splitlines()
  lines = [line for line in flags_lib.to_flagfile(config).splitlines()
           if not line.startswith(('--mode=', '--compare_', '--tune_'))
           and line not in defaults]
  made = flags_lib.parse(*lines, *args, where=where)
  for stage in ('mode', 'seed', 'workdir', 'resume', 'fail_on_verdict',
                *_SHARED):
    got = getattr(made, stage)
    wanted = {'mode': 'unlearn', 'workdir': '', 'resume': True}.get(
        stage, getattr(config, stage))
    fields.check(
        got == wanted, f'{where} sets --{stage} of a single run; wanted flags'
        ' of a method. All runs have the same model, data and evaluation: give'
        ' these in the command.')
  made = dataclasses.replace(
      made, seed=seed, resume=config.resume,
      workdir=str(pathlib.Path(config.workdir) / folder))
  mode_checks.check_unread_flags(made)
  return Cell(name, made, pathlib.Path(config.workdir))


@dataclasses.dataclass(frozen=True)
class Checked:
  """Cells whose flags, data and workdirs were checked. Collective.

  Attributes:
    cells: in the order in which they run.
    hashes: `{name: SHA-256}` of the files that each of them reads.
  """

  cells: Sequence[Cell]
  hashes: Mapping[Cell, Mapping[str, str]]


def check(cells: Sequence[Cell]) -> Checked:
  """Checks everything but the model before the first run.

  Raises:
    ValueError: bad flags or data, or a workdir that holds another run.
  """
  def model_hash():
    return loading.sha256(loading.find(
        cells[0].config.model, cells[0].config.model_ignore_fields).files)

  model = processes.raise_on_all(model_hash)
  return Checked(cells, {
      cell: checks.read(cell.config).hashes | {'model': model}
      for cell in cells})


def _of_base(cell: Cell, hashes: Mapping[str, str]) -> pathlib.Path:
  """The folder of what follows from the base alone: the same, if all else is.

  Args:
    cell: a cell.
    hashes: `{name: SHA-256}` of the files that it reads.
  """
  shared = dataclasses.replace(run_config.RunConfig(), **{
      name: getattr(cell.config, name)
      for name in ('seed', 'model_ignore_fields', *_SHARED)})
  identity = json.dumps(
      [flags_lib.to_flagfile(shared), dict(hashes), environment.describe()],
      sort_keys=True)
  return cell.whole / _BASE / hashlib.sha256(identity.encode()).hexdigest()[:16]


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
  """Keeps compiled programs on disk, so that cells share them; then drops them.

  In memory they would add up. A cache that the user chose is used instead
  (`JAX_COMPILATION_CACHE_DIR`).
  """
  if jax.config.jax_compilation_cache_dir:
    yield
    return
  logging.getLogger('jax._src.compilation_cache').setLevel(logging.WARNING)
  before = {name: getattr(jax.config, name) for name in _KEEP_ALL}
  with tempfile.TemporaryDirectory(prefix='mansu_jax_compiled_') as folder:
    for name, value in _KEEP_ALL.items():
      jax.config.update(name, value)
    compilation_cache.set_cache_dir(folder)
    compilation_cache.reset_cache()  # It may have been found to be off.
    try:
      yield
    finally:
      jax.config.update('jax_compilation_cache_dir', None)
      compilation_cache.reset_cache()
      for name, value in before.items():
        jax.config.update(name, value)


def record(
    checked: Checked, cell: Cell,
    then: Callable[[pathlib.Path], None] = lambda root: None) -> dict[str, Any]:
  """The record of a cell: read if it is there, else made.

  Args:
    checked: what `check` returned.
    cell: one of its cells.
    then: called with the workdir of a run that has ended.

  Raises:
    DivergedError: the run diverged, now or before.
    ValueError: bad input.
  """
  hashes = checked.hashes[cell]
  identity = {'flags': flags_lib.to_flagfile(cell.config),
              'hashes': dict(hashes)}
  note = cell.root / _DIVERGED

  def earlier():
    if not (cell.config.resume and note.is_file()):
      return None
    found = json.loads(note.read_text('utf-8'))
    error = found.pop('error')
    return error if found == identity else None

  if not (cell.config.resume and workdir.is_finished(cell.config, hashes)):
    if error := processes.broadcast_from_primary(earlier):
      raise loop.DivergedError(error)
    try:
      unlearn.run(cell.config, shared=processes.broadcast_from_primary(
          lambda: _of_base(cell, hashes)))
    except loop.DivergedError as error:
      processes.broadcast_from_primary(functools.partial(
          files.write_json, note, identity | {'error': str(error)}))
      raise
    finally:
      jax.clear_caches()  # Each setting has programs of its own.
      gc.collect()
    processes.broadcast_from_primary(lambda: then(cell.root))
  return processes.broadcast_from_primary(
      lambda: json.loads((cell.root / 'record.json').read_text('utf-8')))
