"""`--mode=tune`: finds settings by successive halving, and writes a flagfile.

Each setting of a grid is tried with few steps; the better half goes on with
more (Jamieson and Talwalkar 2016). A trial is an ordinary run in
WORKDIR/STEPS/NUMBER. Of the settings that keep held-out facts within
`--tune_drop`, the one that forgets most is the best. It is chosen on the
questions that it was judged on: judge it again on others.

References:
  Jamieson and Talwalkar, Non-stochastic Best Arm Identification and
  Hyperparameter Optimization, 2016 (arXiv 1502.07943)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools
import math
import pathlib
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from mansu_jax.config import fields
from mansu_jax.config import run as run_config
from mansu_jax.flows import cells as cells_lib
from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import words
from mansu_jax.runtime import files
from mansu_jax.runtime import processes
from mansu_jax.runtime import workdir
from mansu_jax.unlearn import loop

_READINGS = ('choice', 'choice_unseen')
_CAPTION = (
    'Trials, the best first. Known: share of the base\'s knowledge that is left'
    ' in the worst reading and precision. Drop: what is lost of the accuracy on'
    ' held-out facts at the worst precision; a setting above --tune_drop={drop}'
    ' comes after those within it.')


class Trial(NamedTuple):
  """A setting that was tried.

  Attributes:
    setting: values of the flags of the grid, as text.
    steps: of training; 0: as many as a run takes.
    known: share of the base's knowledge that is left, in the worst of the
      choice readings and precisions; inf if training diverged.
    drop: accuracy on held-out facts that is lost, at the worst precision.
    collapsed: whether the model lost half of it.
  """

  setting: tuple[tuple[str, str], ...]
  steps: int
  known: float
  drop: float
  collapsed: bool

  def rank(self, most: float) -> tuple[bool, bool, float, float]:
    """Sorts trials, the best first, for a largest drop."""
    within = self.drop <= most and math.isfinite(self.known)
    return (self.collapsed, not within,
            self.known if within else self.drop, self.drop)


@workdir.locked
def run(config: run_config.RunConfig) -> str:
  """Tries settings, and writes `tuned.flags`, `table.md` and `table.json`.

  Args:
    config: the configuration of a run in tune mode.

  Returns:
    The table of the last round in Markdown, and the best setting.

  Raises:
    ValueError: bad input, found before any long work; or no setting that was
      tried keeps enough.
  """
  settings, rounds = _settings(config), config.tune.steps
  cells = [_cells(config, settings, steps) for steps in rounds]  # Checked.
  root = workdir.open_workdir(config, {})
  trials: list[Trial] = []
  for steps, made in zip(rounds, cells):
    found = []
    for number, setting in enumerate(settings, 1):
      cell = made[setting]
      logging.info('Trial %d of %d with %s steps: %s', number, len(settings),
                   steps or 'all', cell.name)
      found.append(_trial(setting, steps, cell))
    found.sort(key=lambda trial: trial.rank(config.tune.drop))
    trials = found + trials
    _write(root, trials, config.tune.drop)
    settings = [trial.setting for trial in found[:-(-len(found) // 2)]]
  best = trials[0]
  fields.check(
      best.drop <= config.tune.drop and math.isfinite(best.known),
      f'The best of {len(found)} settings loses {best.drop:.3f} of the accuracy'
      f' on held-out facts; wanted at most --tune_drop={config.tune.drop}.'
      f' {root / "table.md"} has all trials. Try milder values, or allow more.')
  processes.broadcast_from_primary(lambda: files.write_text(
      root / 'tuned.flags', _flagfile(best)))
  return (f'{_table(found, config.tune.drop)}\n\n'
          f'{root / "tuned.flags"}: {_name(best.setting)}\n')


def _settings(
    config: run_config.RunConfig) -> list[tuple[tuple[str, str], ...]]:
  """The settings to try, in the order of the grid."""
  fields.check(
      bool(config.tune.grid and config.workdir),
      f'--mode=tune has --tune_grid={",".join(config.tune.grid)} and --workdir='
      f'{config.workdir}; wanted both. Give flags with values to try, and a'
      ' folder.')
  grid = config.tune.values
  every = [tuple(zip(grid, values))
           for values in itertools.product(*grid.values())]
  if len(every) > config.tune.trials:
    drawn = np.random.default_rng(config.seed).choice(
        len(every), config.tune.trials, replace=False)
    every = [every[i] for i in sorted(drawn)]
  return every


def _cells(
    config: run_config.RunConfig,
    settings: Sequence[tuple[tuple[str, str], ...]], steps: int
) -> Mapping[tuple[tuple[str, str], ...], cells_lib.Cell]:
  """The run of each setting; their flags are checked."""
  out = {}
  for number, setting in enumerate(settings):
    given = [f'--{name}={value}' for name, value in setting]
    if steps:
      given.append(f'--unlearn_steps={steps}')
    out[setting] = cells_lib.make(
        config, _name(setting), f'{steps or "all"}_steps/{number}', *given,
        where='--tune_grid')
  return out


def _name(setting: Sequence[tuple[str, str]]) -> str:
  return ' '.join(f'--{name}={value}' for name, value in setting)


def _trial(
    setting: tuple[tuple[str, str], ...], steps: int, cell: cells_lib.Cell
) -> Trial:
  try:
    record = cells_lib.record(cell)
  except loop.DivergedError as error:
    logging.warning('%s: %s', cell.name, error)
    return Trial(setting, steps, math.inf, math.inf, True)
  kept = cells_lib.kept(record)
  fields.check(
      bool(kept), 'No held-out or retained facts are asked; wanted some, by'
      ' which a setting is judged. Give --data_heldout=H.')
  return Trial(
      setting, steps, _known(record),
      max(before - after for before, after in kept.values()),
      cells_lib.collapsed(record))


def _known(record: Mapping[str, Any]) -> float:
  """What is left of the base's knowledge, where most is left.

  Raises:
    ValueError: no question can tell.
  """
  found = [one['value'] for reading in _READINGS
           for one in record['forgetting'].get(reading, {}).get(
               'known', {}).values() if one.get('value') is not None]
  fields.check(
      bool(found), 'No choice question tells how much is forgotten; wanted'
      ' `near` or `far` questions about the forget set that the base answers.'
      ' Add some.')
  return max(found)


def _table(trials: Sequence[Trial], most: float) -> str:
  names = [f'--{name}' for name, _ in trials[0].setting]
  return markdown.table(document.Table(
      (*names, 'steps', 'known', 'drop', ''),
      tuple((*(value for _, value in trial.setting), str(trial.steps or 'all'),
             *(words.number(x) if math.isfinite(x) else 'diverged'
               for x in (trial.known, trial.drop)),
             'collapsed' if trial.collapsed else '') for trial in trials),
      labels=len(names), caption=_CAPTION.format(drop=most)))


def _write(root: pathlib.Path, trials: Sequence[Trial], most: float) -> None:
  finite = lambda x: x if math.isfinite(x) else None
  rows = [{'setting': dict(t.setting), 'steps': t.steps,
           'known': finite(t.known), 'drop': finite(t.drop),
           'collapsed': t.collapsed} for t in trials]

  def write():
    files.write_text(root / 'table.md', _table(trials, most) + '\n')
    files.write_json(root / 'table.json', rows)

  processes.broadcast_from_primary(write)


def _flagfile(best: Trial) -> str:
  lines = [f'--{name}={value}' for name, value in best.setting]
  return '\n'.join([
      f'# Chosen by --mode=tune: known {best.known:.3f}, drop {best.drop:.3f},'
      ' on', '# the questions that chose it. Judge it on others.', *lines, ''])
