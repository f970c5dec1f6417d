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
      ' method. Required for --mode=compare.')
  seeds: int = _field(
      3, 'Runs of each method, with --seed and the seeds that follow it.',
      maximum=MAX_SEEDS)

  def __post_init__(self):
    fields.check_fields(self, 'compare')
    fields.check_minimum(self, 'compare', 1, 'seeds')
    names = [pathlib.PurePath(path).stem for path in self.flagfiles]
    fields.check(
        len(set(names)) == len(names) and all(names), '--compare_flagfiles='
        f'{",".join(self.flagfiles)} names a method twice or not at all; wanted'
        ' flagfiles of different names.')
