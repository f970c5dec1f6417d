"""`--mode=tune`: finds settings by successive halving, and writes a flagfile.

Each setting of a grid is tried with few steps; the better half goes on with
more (Jamieson and Talwalkar 2016). A trial is a run in WORKDIR/STEPS/NUMBER
without measures that do not choose, and without its weights. Of the settings
that keep held-out facts within `--tune_drop`, the one that forgets most is the
best. It is chosen on the questions that it was judged on: judge it again on
others.

References:
  Jamieson and Talwalkar, Non-stochastic Best Arm Identification and
  Hyperparameter Optimization, 2016 (arXiv 1502.07943)
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
import pathlib
import random
import shutil
from typing import NamedTuple

from absl import logging
import numpy as np

from mansu_jax.config import fields
from mansu_jax.config import methods
from mansu_jax.config import run as run_config
from mansu_jax.flows import cells as cells_lib
from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import table
from mansu_jax.report import words
from mansu_jax.runtime import files
from mansu_jax.runtime import processes
from mansu_jax.runtime import workdir
from mansu_jax.unlearn import loop

# Measures that do not choose a setting.
_NOT_MEASURED = {
    'cad_pairs': 0, 'lens_questions': 0, 'generations': 0,
    'hidden_questions': 0, 'recall_questions': 0, 'attacks': ()}
_STAGES = ('attribution', 'circuit', 'fisher', 'edit', 'unlearn')
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
    known: share of the base's knowledge that is left, in the worst reading and
      precision, as F judges it; inf if a reading cannot tell, or training
      diverged.
    drop: accuracy on held-out facts that is lost, at the worst precision.
    collapsed: whether the model lost half of it, or training diverged.
  """

  setting: tuple[tuple[str, str], ...]
  steps: int
  known: float
  drop: float
  collapsed: bool

  def within(self, most: float) -> bool:
    """Whether it may be chosen, for a largest drop."""
    return not self.collapsed and self.drop <= most and (
        math.isfinite(self.known))

  def rank(self, most: float) -> tuple[bool, bool, float, float]:
    """Sorts trials, the best first, for a largest drop."""
    within = self.within(most)
    return (self.collapsed, not within,
            self.known if within else self.drop, self.drop)


@workdir.locked
@cells_lib.compiled_once()
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
  settings = processes.raise_on_all(lambda: _settings(config))
  # A closed form takes no steps.
  rungs = (0,) if config.method in methods.CLOSED_FORMS else config.tune.steps
  rounds = [processes.raise_on_all(lambda n=steps: _cells(config, settings, n))
            for steps in rungs]
  checked = cells_lib.check([cell for made in rounds for cell in made.values()])
  root = workdir.open_workdir(config, {})
  earlier: list[Trial] = []
  for steps, made in zip(rungs, rounds):
    found: list[Trial] = []
    for number, setting in enumerate(settings, 1):
      logging.info('Trial %d of %d with %s steps: %s', number, len(settings),
                   steps or 'all', _name(setting))
      found.append(_trial(setting, steps, checked, made[setting]))
      found.sort(key=lambda trial: trial.rank(config.tune.drop))
      _write(root, [*found, *earlier], config.tune.drop)
    earlier = [*found, *earlier]
    better = found[:-(-len(found) // 2)]
    settings = [trial.setting for trial in better if not trial.collapsed]
    if not settings:
      break
  best = found[0]
  fields.check(
      best.within(config.tune.drop),
      f'No setting loses at most --tune_drop={config.tune.drop} of the accuracy'
      f' on held-out facts; wanted one. The best loses {best.drop:.3f}.'
      f' {root / "table.md"} has all trials. Try milder values, or allow more.')
  flags = _flagfile(config, best, made[best.setting])
  processes.broadcast_from_primary(
      lambda: files.write_text(root / 'tuned.flags', flags))
  return (f'{_table(found, config.tune.drop)}\n\n'
          f'{root / "tuned.flags"}: {_name(best.setting)}\n')


def _settings(
    config: run_config.RunConfig) -> list[tuple[tuple[str, str], ...]]:
  """The settings to try, in the order of the grid."""
  fields.check(
      bool(config.tune.grid and config.workdir and config.data.heldout),
      f'--mode=tune has --tune_grid={",".join(config.tune.grid)}, --workdir='
      f'{config.workdir} and --data_heldout={",".join(config.data.heldout)};'
      ' wanted all three. Give flags with values to try, a folder, and facts by'
      ' which to judge what a setting costs.')
  grid = config.tune.values
  sizes = [len(values) for values in grid.values()]
  count = math.prod(sizes)
  chosen = range(count)
  if count > config.tune.trials:
    chosen = sorted(random.Random(config.seed).sample(
        chosen, config.tune.trials))
  return [tuple((name, grid[name][i]) for name, i in zip(
      grid, np.unravel_index(number, sizes))) for number in chosen]


def _cells(
    config: run_config.RunConfig,
    settings: Sequence[tuple[tuple[str, str], ...]], steps: int
) -> dict[tuple[tuple[str, str], ...], cells_lib.Cell]:
  """The run of each setting; their flags are checked."""
  whole = dataclasses.replace(
      config, circuit=dataclasses.replace(config.circuit, resamples=0),
      eval=dataclasses.replace(config.eval, **_NOT_MEASURED))
  out = {}
  for number, setting in enumerate(settings):
    given = [f'--{name}={value}' for name, value in setting]
    if steps:
      given.append(f'--unlearn_steps={steps}')
    out[setting] = cells_lib.make(
        whole, _name(setting), f'{steps or "all"}_steps/{number}', *given,
        seed=config.seed, where='--tune_grid')
  fields.check(
      len({dataclasses.replace(cell.config, workdir='')
           for cell in out.values()}) == len(out),
      f'--tune_grid={",".join(config.tune.grid)} has settings that are equal;'
      ' wanted different values, not 1e-4 and 0.0001.')
  return out


def _name(setting: Sequence[tuple[str, str]]) -> str:
  return ' '.join(f'--{name}={value}' for name, value in setting)


def _trial(
    setting: tuple[tuple[str, str], ...], steps: int,
    checked: cells_lib.Checked, cell: cells_lib.Cell) -> Trial:
  try:
    record = cells_lib.record(checked, cell, _remove_weights)
  except loop.DivergedError as error:
    logging.warning('%s: %s', cell.name, error)
    return Trial(setting, steps, math.inf, math.inf, True)
  properties = record['properties']
  drops = [found['value']
           for found in properties['R']['by_precision'].values()]
  # phi is the share of the base's knowledge that is gone.
  known = [math.inf if phi['value'] is None else 1 - phi['value']
           for found in properties['F'].get('by_reading', {}).values()
           for phi in found.values()]
  fields.check(
      bool(known), 'No question tells how much is forgotten; wanted `near` or'
      ' `far` questions about the forget set that the base answers. Add some.')
  return Trial(
      setting, steps, max(known), max(drops), table.collapsed(record))


def _remove_weights(root: pathlib.Path) -> None:
  """A trial's model and checkpoints: its edit is enough."""
  for name in ('model', 'checkpoints'):
    shutil.rmtree(root / name, ignore_errors=True)


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


def _flagfile(
    config: run_config.RunConfig, best: Trial, cell: cells_lib.Cell) -> str:
  """The flags of the method with the best setting, for runs and comparisons."""
  kept = ('method', *(f'{stage}_' for stage in _STAGES))
  lines = [
      line for name, field, value in run_config.options(dataclasses.replace(
          cell.config, circuit=dataclasses.replace(
              cell.config.circuit, resamples=config.circuit.resamples)))
      if name.startswith(kept) and value != field.default
      for line in fields.flag_lines(name, value)]
  return '\n'.join([
      f'# Chosen by --mode=tune: known {best.known:.3f}, drop {best.drop:.3f},'
      ' on', '# the questions that chose it. Judge it on others.', *lines, ''])
