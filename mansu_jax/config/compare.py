"""Configuration of a comparison of methods."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=('compare',))
MAX_SEEDS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
  """The methods, and how often each of them runs."""

  flagfiles: tuple[str, ...] = _field(
      (), 'A flagfile for each method, separated by commas: the flags in which'
      ' it differs from the command. Its name without the ending names the'
      ' method; NAME=FILE gives another. All are compared with the first.'
      ' Required for --mode=compare.')
  seeds: int = _field(
      3, 'Runs of each method, with --seed and the seeds that follow it.',
      maximum=MAX_SEEDS)

  def __post_init__(self):
    fields.check_fields(self, 'compare')
    fields.check_minimum(self, 'compare', 1, 'seeds')
    fields.check(
        len(self.methods) == len(self.flagfiles) and all(
            name and path for name, path in self.methods.items()),
        f'--compare_flagfiles={",".join(self.flagfiles)} names a method twice'
        ' or not at all; wanted flagfiles of different names, or NAME=FILE.')

  @property
  def methods(self) -> dict[str, str]:
    """Flagfile of each method, by its name."""
    found = {}
    for entry in self.flagfiles:
      name, given, path = entry.partition('=')
      if not given or '/' in name:  # A path may hold a = as well.
        name, path = pathlib.PurePath(entry).stem, entry
      found[name] = path
    return found
