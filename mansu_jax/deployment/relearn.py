"""Attacks unlearned models by relearning: do forgotten facts come back?

  python -m mansu_jax.deployment.relearn --workdir=W [--controls]
  python -m mansu_jax.deployment.relearn --run=FLAGFILE \\
      --models=NAME=DIR,... --out=FOLDER [--controls]

W is a finished workdir of --mode=unlearn: its flags.txt gives data and base
model, and W/model is the unlearned model. Otherwise, FLAGFILE is a run's
flagfile and each DIR a Hugging Face directory, such as model/ of a finished
run.

The attack fine-tunes all weights on half of the forgotten facts and measures
accuracy on far phrasings of the other half, which fine-tuning never shows. The
record also has the model's readability. --controls also attacks, for each
model, an edit that only hides as many answers (`erasure.suppression`). Records
are OUT/relearning/NAME_sSEED.json; existing records are not computed again.

Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from absl import app
from absl import flags

from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as run_config
from mansu_jax.deployment import command_line
from mansu_jax.deployment import relearning_attack
from mansu_jax.deployment import relearning_records

_NAME = 'mansu_jax.deployment.relearn'


def define(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags; call once before `app.run`."""
  text = lambda name, doc: flags.DEFINE_string(
      name, '', doc, flag_values=flag_values)
  text('workdir', 'Finished workdir, with flags.txt and model/.')
  text('run', 'Flagfile of a run, instead of a workdir.')
  flags.DEFINE_list(
      'models', [], 'Unlearned models, NAME=DIR, for --run.',
      flag_values=flag_values)
  text('out', 'Folder of the records; default: the workdir.')
  flags.DEFINE_integer(
      'seed', None, 'Seed of the taught facts and their order; default: the'
      ' seed of the run.', lower_bound=0, flag_values=flag_values)
  flags.DEFINE_float(
      'learning_rate', relearning_attack.LEARNING_RATE,
      'Learning rate of the attack.', lower_bound=0.0, flag_values=flag_values)
  flags.DEFINE_bool(
      'controls', False, 'Also attack a control that hides as many answers.',
      flag_values=flag_values)


def parse_models(models: list[str]) -> dict[str, str]:
  """Splits `NAME=PATH` entries.

  Args:
    models: Entries.

  Returns:
    Paths by name.

  Raises:
    ValueError: An entry lacks a name or a path, or repeats a name.
  """
  paths = {}
  for entry in models:
    name, _, path = entry.partition('=')
    if not name or not path or '/' in name or name in paths:
      raise ValueError(
          f'--models has {entry!r}; wanted NAME=DIR with a new name, without'
          ' slashes, for each model.')
    paths[name] = path
  return paths


def _sources(
    values: flags.FlagValues) -> tuple[pathlib.Path, dict[str, str]]:
  """Checks the flags; returns the run's flagfile, and models by name."""
  if bool(values.workdir) == bool(values.run or values.models):
    raise ValueError(
        'Wanted either --workdir, or --run with --models and --out.')
  if values.workdir:
    root = pathlib.Path(values.workdir)
    flagfile, models = root / 'flags.txt', {'model': str(root / 'model')}
  elif values.run and values.models and values.out:
    flagfile, models = pathlib.Path(values.run), parse_models(values.models)
  else:
    raise ValueError('--run, --models and --out go together; wanted all three.')
  if not flagfile.is_file():
    raise ValueError(
        f'{flagfile} is not a file; wanted the flagfile of a run. Give a'
        ' finished workdir, or a flagfile.')
  for path in models.values():
    if not pathlib.Path(path).is_dir():
      raise ValueError(f'{path} is not a folder; wanted the Hugging Face'
                       ' directory of an unlearned model.')
  return flagfile, models


def _read_config(
    flagfile: pathlib.Path, out: pathlib.Path, seed: int | None
) -> run_config.RunConfig:
  """Config of the run. The attack never writes to the config's workdir."""
  overrides = [] if seed is None else [f'--seed={seed}']
  config = flags_lib.from_flagfile(
      str(flagfile), f'--workdir={out / "unused"}', *overrides)
  if config.mode != 'unlearn':
    raise ValueError(
        f'{flagfile} has --mode={config.mode}; wanted a run of --mode=unlearn,'
        ' whose --model is the base model.')
  return config


def relearn(values: flags.FlagValues) -> list[dict[str, Any]]:
  """Attacks the models, and prints and writes their records.

  Args:
    values: Parsed flags.

  Returns:
    The new records.

  Raises:
    ValueError: Bad input.
  """
  flagfile, models = _sources(values)
  out = pathlib.Path(values.out or values.workdir)
  config = _read_config(flagfile, out, values.seed)
  session = relearning_records.Session(config)
  records = []
  for record in session.write_records(
      relearning_records.targets_of(models, session, controls=values.controls),
      out, learning_rate=values.learning_rate):
    print(relearning_records.summary_line(record), flush=True)
    records.append(record)
  print(f'written: {out / "relearning"}')
  return records


def main(
    argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Runs the attack; returns the exit status."""
  def action():
    relearn(flag_values)
    return 0

  return command_line.run(_NAME, argv, action)


if __name__ == '__main__':
  define()
  app.run(main, flags_parser=functools.partial(
      command_line.parse, _NAME, flags.FLAGS))
