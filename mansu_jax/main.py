"""Unlearns, and proves it under quantization: `python -m mansu_jax.main`.

  --flagfile=experiments/quickstart.flags --workdir=DIR   a job that is shipped
  --workdir=DIR --model=M --data_forget=F --data_retain=R  your own
  --workdir=DIR --mode=audit --base=B --model=M   a model unlearned elsewhere
  --workdir=DIR --mode=attribute --model=M --attribution_pairs_file=F   circuits only
  --mode=plan --flagfile=experiments/llama31_8b_plan.flags   what a run takes

Flags are of stages, `--<stage>_<field>`; later ones override a flagfile's, but
--data_* add to them (experiments/recipe.flags is the method without data). Exit
status: 0 done, 2 bad input or a workdir in use, 3 the verdict is not `passed`
(--fail_on_verdict), 4 a plan does not fit, 75 told to stop (SIGTERM, ctrl-C);
the same command then goes on.
"""

from __future__ import annotations

from mansu_jax.runtime import preemption

if __name__ == '__main__':
  preemption.hear()  # Before anything that is slow to import.

# pylint: disable=g-import-not-at-top
from collections.abc import Callable
import contextlib
import logging as std_logging
import os
import pathlib
import re
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging

from mansu_jax.config import flags as run_flags
from mansu_jax.config import run as run_config
from mansu_jax.runtime import lock
from mansu_jax.runtime import progress

# pylint: enable=g-import-not-at-top

VERDICT_FAILED = 3  # Exit status with --fail_on_verdict.
USER_ERROR = 2
DOES_NOT_FIT = 4  # Exit status of such a plan.
_LONGEST = 2000  # Characters of a message.
_WANTED = {  # What Python says of a number -> what was wanted.
    'invalid literal for int': 'a whole number, such as 100',
    'Exceeds the limit': 'a whole number of fewer digits',
    'could not convert string to float': 'a number, such as 0.1',
    "('Non-boolean argument": 'true or false'}


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; exits on one that absl does not take, or on --help."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    what = str(error).removeprefix('ERROR:: ').rstrip('.')
    for pythons, ours in _WANTED.items():
      what = re.sub(f': {re.escape(pythons)}.*', f'; wanted {ours}', what,
                    flags=re.DOTALL)
    print(f'mansu_jax: {_line(what)}. See --help.', file=sys.stderr)
    sys.exit(USER_ERROR)
  except UnicodeDecodeError as error:
    given = ' '.join(arg for arg in argv if arg.startswith('--flagfile'))
    print(f'mansu_jax: {_line(given)}: {error}; wanted text in that encoding,'
          ' which is the locale\'s. Save it as UTF-8, and set PYTHONUTF8=1'
          ' where the locale has another.', file=sys.stderr)
    sys.exit(USER_ERROR)
  except SystemExit:  # Of absl's --help, with status 1.
    sys.exit(0)


def _line(text: str) -> str:
  """A message in one line, of which the middle goes where it is endless."""
  text = ' '.join(text.splitlines())
  half = _LONGEST // 2
  return text if len(text) <= _LONGEST else f'{text[:half]} ... {text[-half:]}'


def _is_ours(record: Any) -> bool:
  """Drops Orbax's account of its files, and JAX's of absent backends.

  Orbax's errors too, with their tracebacks: `checkpoints` says what goes wrong.
  """
  limits = {'orbax': std_logging.ERROR, 'xla_bridge': std_logging.INFO}
  return not any(name in record.pathname and record.levelno <= limit
                 for name, limit in limits.items())


def _again(flag_values: flags.FlagValues) -> str:
  """What the same command does after a stop."""
  return ('goes on from what is finished' if flag_values.mode == 'unlearn'
          else 'starts anew')


def main(
    argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Joins, logs, checks, runs; may be told to stop."""
  logging.set_verbosity(logging.INFO)
  for each in (_is_ours, progress.AboveBars()):
    logging.get_absl_handler().addFilter(each)
  name, leave = 'mansu_jax', lambda error, status: None
  try:
    config = _config(argv, flag_values)
    any_of = None
    if config.mesh.distributed:
      from mansu_jax.runtime import processes  # JAX is slow to import.
      processes.join(config.mesh.join_seconds)
      name = _name(processes.number())
      any_of, leave = processes.any_true, processes.abort
    with _locked(config):
      run = _flow(config)
      if config.mode == 'plan':  # Nothing to save; it compiles for long.
        return run(config)
      with preemption.listening(any_of, name=name, then=(
          f'the same command {_again(flag_values)}')):
        return run(config)
  except preemption.Stopped as stopped:
    preemption.say_stopped(str(stopped))
    return preemption.EXIT_STATUS
  except Exception as error:
    if flag_values.debug or not isinstance(error, (ValueError, OSError)):
      leave(error, 1)
      raise
    print(f'{name}: {_line(_told(error, flag_values))}', file=sys.stderr)
    leave(error, USER_ERROR)
    return USER_ERROR


def _locked(
    config: run_config.RunConfig) -> contextlib.AbstractContextManager[None]:
  """Has one process by itself lock its workdir before JAX is imported.

  Of several, it takes JAX to know which is the first; the flow asks it.
  """
  if config.mode == 'plan' or config.mesh.distributed or not config.workdir:
    return contextlib.nullcontext()
  return lock.held(pathlib.Path(config.workdir))


def _told(
    error: ValueError | OSError, flag_values: flags.FlagValues) -> str:
  """An error in a line."""
  if isinstance(error, ValueError):
    return str(error)
  # A file that vanished, no right, a full disk.
  what = f'{error.filename}: ' if error.filename else ''
  return (f'{what}{error.strerror or error}. Check that the file can be read or'
          ' written and that the disk has room; the same command'
          f' {_again(flag_values)}.')


def _name(number: int) -> str:
  """What a process calls itself; all but the first say what goes wrong."""
  if not number:
    return 'mansu_jax'
  name = f'mansu_jax, process {number}'
  handler = logging.get_absl_handler()
  handler.setFormatter(std_logging.Formatter(f'{name}: %(message)s'))
  logging.set_verbosity(logging.WARNING)
  sys.stdout = open(os.devnull, 'w', encoding='utf-8')
  return name


def _config(
    argv: list[str], flag_values: flags.FlagValues) -> run_config.RunConfig:
  """The config; raises ValueError where flags are wrong."""
  if len(argv) > 1:
    raise ValueError(
        f'Positional arguments {argv[1:]} are not used; write flags as'
        ' --name=value (an indented comment in a flagfile is an argument'
        ' too: put # in the first column).')
  return run_flags.to_config(flag_values)


def _flow(
    config: run_config.RunConfig) -> Callable[[run_config.RunConfig], int]:
  """What the mode runs, which gives the exit status; slow to import."""
  # Transformers says that there is no PyTorch; nothing here needs it.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  if config.mode == 'plan':
    from mansu_jax.flows import plan
    return lambda config: _plan(plan, config)
  if config.mode == 'attribute':
    from mansu_jax.flows import attribute
    from mansu_jax.report.sections import attribution_summary
    return lambda config: _attribute(attribute, attribution_summary, config)
  from mansu_jax.flows import audit
  from mansu_jax.flows import unlearn as pipeline
  from mansu_jax.report.sections import summary
  flow = audit if config.mode == 'audit' else pipeline
  return lambda config: _judged(flow, summary, config)


def _plan(plan: Any, config: run_config.RunConfig) -> int:
  found = plan.run(config)
  print('\n'.join(plan.lines(found)))
  return 0 if found.fits else DOES_NOT_FIT


def _attribute(flow: Any, lines: Any, config: run_config.RunConfig) -> int:
  print('\n'.join(lines.lines(flow.run(config))))
  return 0


def _judged(flow: Any, summary: Any, config: run_config.RunConfig) -> int:
  record = flow.run(config)
  print('\n'.join(summary.lines(record)))
  passed = record['verdict']['passed']
  return VERDICT_FAILED if config.fail_on_verdict and passed is not True else 0


def run() -> None:
  """The program; it ends the process."""
  preemption.hear()
  if hasattr(sys.stdout, 'reconfigure'):  # Names that a locale cannot write.
    sys.stdout.reconfigure(errors='backslashreplace')
  run_flags.define()
  try:
    app.run(main, flags_parser=_parse)
  except SystemExit as left:
    if isinstance(left.code, str):
      print(left.code, file=sys.stderr)
    preemption.leave(
        1 if isinstance(left.code, str) else left.code or 0, _part)


def _part() -> None:
  """Leaves the other processes, which wait for each other's end."""
  if flags.FLAGS.is_parsed() and flags.FLAGS.mesh_distributed:
    from mansu_jax.runtime import processes
    processes.part()


if __name__ == '__main__':
  run()
