"""The runs of a comparison or a search: each is an ordinary run.

Each has a workdir of its own within that of the whole, so that a stopped
comparison resumes, and finished cells are read.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import pathlib
from typing import Any, NamedTuple

import jax

from mansu_jax.config import compare
from mansu_jax.config import fields
from mansu_jax.config import flags as flags_lib
from mansu_jax.config import mode_checks
from mansu_jax.config import run as run_config
from mansu_jax.config import tune
from mansu_jax.flows import unlearn
from mansu_jax.runtime import processes

# A model that answers less than this share of what the base did has collapsed.
_COLLAPSED = 0.5
_KEPT = ('retain_heldout', 'retain')  # Judged on the first that is measured.


class Cell(NamedTuple):
  """A run within a comparison or a search."""

  name: str
  config: run_config.RunConfig

  @property
  def root(self) -> pathlib.Path:
    """Its workdir."""
    return pathlib.Path(self.config.workdir)


def make(
    config: run_config.RunConfig, name: str, folder: str, *args: str, where: str
) -> Cell:
  """A cell with the flags of the command and its own.

  Args:
    config: of the whole.
    name: of the cell.
    folder: of its workdir, within that of the whole.
    *args: its own flags, as on the command line.
    where: what an error names: a file or a flag.

  Raises:
    ValueError: a flag is unknown, has no effect or contradicts another.
  """
  lines = flags_lib.to_flagfile(dataclasses.replace(
      config, mode='unlearn', compare=compare.CompareConfig(),
      tune=tune.TuneConfig())).splitlines()
  made = flags_lib.parse(
      *lines, *args, f'--workdir={pathlib.Path(config.workdir) / folder}',
      *[] if config.resume else ['--noresume'], where=where)
  fields.check(
      made.mode == 'unlearn', f'{where} has --mode={made.mode}; wanted flags of'
      ' an unlearning run. Leave the mode out.')
  mode_checks.check_unread_flags(made)
  return Cell(name, made)


def record(cell: Cell) -> dict[str, Any]:
  """The record of a cell: read if it is there, else made.

  Raises:
    DivergedError: the run diverged.
    ValueError: bad input.
  """
  path, flags = cell.root / 'record.json', cell.root / 'flags.txt'
  finished = lambda: (
      cell.config.resume and path.is_file() and flags.is_file()
      and flags.read_text('utf-8') == flags_lib.to_flagfile(cell.config))
  if not processes.broadcast_from_primary(finished):
    unlearn.run(cell.config)
    jax.clear_caches()  # Each setting has programs of its own.
    gc.collect()
  return processes.broadcast_from_primary(
      lambda: json.loads(path.read_text('utf-8')))


def kept(record: dict[str, Any]) -> dict[str, tuple[float, float]]:
  """Accuracy on held-out facts, or retained ones without: (base, unlearned).

  By precision; {} if neither is measured.
  """
  for split in _KEPT:
    if split in record['accuracy']:
      found = record['accuracy'][split]
      return {precision: tuple(
          found[model][precision]['value'] for model in ('base', 'unlearned'))
              for precision in found['base']}
  return {}


def collapsed(record: dict[str, Any]) -> bool:
  """Whether the model lost half of what it should keep, in full precision."""
  before, after = kept(record).get('fp', (0.0, 0.0))
  return after < _COLLAPSED * before
