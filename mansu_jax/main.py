"""Unlearns facts and tests the result under quantization.

Usage: `python -m mansu_jax.main` with flags such as

  --flagfile=experiments/quickstart.flags --workdir=DIR
      a job of this repository
  --workdir=DIR --model=M --data_forget=F --data_retain=R
      your own model and data
  --workdir=DIR --mode=audit --base=B --model=M
      test a model that any tool has unlearned
  --workdir=DIR --mode=attribute --model=M --attribution_pairs_file=F
      attribution scores and a circuit only
  --mode=plan --flagfile=experiments/plan.flags
      memory and time that a run needs
  --workdir=DIR --mode=apply --base=B --edit=F
      the edit of a run, made in its base or taken back
  --workdir=DIR --mode=compare --compare_flagfiles=A,B --data_forget=F ...
      several methods on the same data
  --workdir=DIR --mode=tune --tune_grid=FLAG=A|B --data_forget=F ...
      the best of several settings

Flags of a stage are `--<stage>_<field>`. A later flag overrides an earlier one
and the flagfile, but repeated --data_* flags add up. The defaults are a whole
method; a run needs a flagfile only for its data.

Exit status:
  0: done
  1: internal error
  2: bad input, workdir in use, or a file that cannot be read or written
  3: the verdict is not `passed` (with --fail_on_verdict)
  4: the planned run does not fit the devices
  75: stopped by SIGTERM or ctrl-C; the same command resumes what it stopped
  134: timed out waiting for another process (with --mesh_distributed)
"""

from __future__ import annotations

from mansu_jax.runtime import preemption

if __name__ == '__main__':
  preemption.install_handlers()  # Before the slow imports.

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

from mansu_jax.config import flags as flags_lib
from mansu_jax.config import mode_checks
from mansu_jax.config import run as run_config
from mansu_jax.runtime import lock
from mansu_jax.runtime import progress

# pylint: enable=g-import-not-at-top

# Exit statuses.
INTERNAL_ERROR = 1
USER_ERROR = 2
VERDICT_FAILED = 3
DOES_NOT_FIT = 4
_MAX_MESSAGE = 2000  # Characters of an error message.
_WANTED = {  # Start of an error of Python -> value that the flag takes.
    'invalid literal for int': 'a whole number, such as 100',
    'Exceeds the limit': 'a whole number of fewer digits',
    'could not convert string to float': 'a number, such as 0.1',
    "('Non-boolean argument": 'true or false'}


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; exits on --help and on flags that absl refuses."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    text = str(error).removeprefix('ERROR:: ').rstrip('.')
    for start, wanted in _WANTED.items():
      text = re.sub(f': {re.escape(start)}.*', f'; wanted {wanted}', text,
                    flags=re.DOTALL)
    print(f'mansu_jax: {_one_line(text)}. See --help.', file=sys.stderr)
    sys.exit(USER_ERROR)
  except UnicodeDecodeError as error:
    given = ' '.join(arg for arg in argv if arg.startswith('--flagfile'))
    print(f'mansu_jax: {_one_line(given)}: {error}; wanted text in this'
          ' encoding, which the locale sets. Save the file as UTF-8, and set'
          ' PYTHONUTF8=1 if the locale has another encoding.', file=sys.stderr)
    sys.exit(USER_ERROR)
  except SystemExit:  # absl exits with status 1 after --help.
    sys.exit(0)


def _one_line(text: str) -> str:
  """A message on one line, abbreviated in the middle if it is long."""
  text = ' '.join(text.splitlines())
  half = _MAX_MESSAGE // 2
  return (text if len(text) <= _MAX_MESSAGE
          else f'{text[:half]} ... {text[-half:]}')


def _apply(flow: Any, config: run_config.RunConfig) -> int:
  print(f'model: {flow.run(config)}')
  return 0


def _print(flow: Any, config: run_config.RunConfig) -> int:
  print(flow.run(config), end='')
  return 0


def _should_log(record: Any) -> bool:
  """Filters out log lines of Orbax, and of JAX about missing backends.

  Orbax's errors are filtered too, because `checkpoints` reports them.
  """
  limits = {'orbax': std_logging.ERROR, 'xla_bridge': std_logging.INFO}
  return not any(name in record.pathname and record.levelno <= limit
                 for name, limit in limits.items())


def _effect_of_repeating(flag_values: flags.FlagValues) -> str:
  """What the same command does after a stop, as a verb phrase."""
  resumes = flag_values.mode in ('unlearn', 'audit', 'compare', 'tune')
  return 'resumes the run' if resumes else 'starts again from the beginning'


def main(
    argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Runs the mode that the flags name.

  Args:
    argv: The arguments that are not flags, after the name of the program.
    flag_values: The parsed flags.

  Returns:
    The exit status.
  """
  logging.set_verbosity(logging.INFO)
  for log_filter in (_should_log, progress.ClearBarsFilter()):
    logging.get_absl_handler().addFilter(log_filter)
  name, abort = 'mansu_jax', lambda error, status: None
  try:
    config = _read_config(argv, flag_values)
    any_of = None
    if config.mesh.distributed:
      from mansu_jax.runtime import processes  # JAX is slow to import.
      processes.join(config.mesh.join_seconds)
      name = _set_process_name(processes.index())
      any_of, abort = processes.any_true, processes.abort
    with _lock_workdir(config):
      run = _flow(config)
      if config.mode == 'plan':  # Nothing to save: a signal ends it at once.
        return run(config)
      with preemption.stop_on_signals(any_of, name=name, then=(
          f'the same command {_effect_of_repeating(flag_values)}')):
        return run(config)
  except preemption.Stopped as stopped:
    preemption.report_stop(str(stopped))
    return preemption.EXIT_STATUS
  except Exception as error:
    if flag_values.debug or not isinstance(error, (ValueError, OSError)):
      abort(error, INTERNAL_ERROR)
      raise
    print(f'{name}: {_one_line(_describe(error, flag_values))}',
          file=sys.stderr)
    abort(error, USER_ERROR)
    return USER_ERROR


def _lock_workdir(
    config: run_config.RunConfig) -> contextlib.AbstractContextManager[None]:
  """Locks the workdir of a single process before JAX is imported.

  With several processes, the flow locks it: only JAX knows which process is the
  primary one.
  """
  if config.mode == 'plan' or config.mesh.distributed or not config.workdir:
    return contextlib.nullcontext()
  return lock.held(pathlib.Path(config.workdir))


def _describe(
    error: ValueError | OSError, flag_values: flags.FlagValues) -> str:
  """The message of an error, with a remedy for errors of the system."""
  if isinstance(error, ValueError):
    return str(error)
  file = f'{error.filename}: ' if error.filename else ''
  return (f'{file}{error.strerror or error}. Check that the file can be read or'
          ' written and that the disk has free space; then the same command'
          f' {_effect_of_repeating(flag_values)}.')


def _set_process_name(index: int) -> str:
  """Names this process in its messages; silences all but the primary one.

  The other processes still write warnings and errors.
  """
  if not index:
    return 'mansu_jax'
  name = f'mansu_jax, process {index}'
  handler = logging.get_absl_handler()
  handler.setFormatter(std_logging.Formatter(f'{name}: %(message)s'))
  logging.set_verbosity(logging.WARNING)
  sys.stdout = open(os.devnull, 'w', encoding='utf-8')
  return name


def _read_config(
    argv: list[str], flag_values: flags.FlagValues) -> run_config.RunConfig:
  """Builds and checks the configuration; raises ValueError on bad flags."""
  if len(argv) > 1:
    raise ValueError(
        f'Positional arguments {argv[1:]} are not used; write flags as'
        ' --name=value. In a flagfile, a comment needs its # in the first'
        ' column.')
  config = flags_lib.to_config(flag_values)
  mode_checks.check_unread_flags(config)
  return config


def _flow(
    config: run_config.RunConfig) -> Callable[[run_config.RunConfig], int]:
  """Imports the flow of the mode, which is slow; it returns the exit status."""
  # Transformers warns that PyTorch is missing; nothing here needs it.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  if config.mode == 'plan':
    from mansu_jax.flows import plan
    from mansu_jax.report.sections import plan as plan_lines
    return lambda config: _plan(plan, plan_lines, config)
  if config.mode == 'attribute':
    from mansu_jax.flows import attribute
    from mansu_jax.report.sections import attribution_summary
    return lambda config: _attribute(attribute, attribution_summary, config)
  if config.mode == 'apply':
    from mansu_jax.flows import apply
    return lambda config: _apply(apply, config)
  if config.mode == 'compare':
    from mansu_jax.flows import compare
    return lambda config: _print(compare, config)
  if config.mode == 'tune':
    from mansu_jax.flows import tune
    return lambda config: _print(tune, config)
  from mansu_jax.flows import audit
  from mansu_jax.flows import unlearn
  from mansu_jax.report.sections import summary
  flow = audit if config.mode == 'audit' else unlearn
  return lambda config: _judge(flow, summary, config)


def _plan(flow: Any, lines: Any, config: run_config.RunConfig) -> int:
  found = flow.run(config)
  print('\n'.join(lines.lines(found)))
  return 0 if found.fits else DOES_NOT_FIT


def _attribute(flow: Any, lines: Any, config: run_config.RunConfig) -> int:
  print('\n'.join(lines.lines(flow.run(config))))
  return 0


def _judge(flow: Any, summary: Any, config: run_config.RunConfig) -> int:
  record = flow.run(config)
  print('\n'.join(summary.lines(record)))
  passed = record['verdict']['passed']
  return VERDICT_FAILED if config.fail_on_verdict and passed is not True else 0


def run() -> None:
  """Runs the command line and ends the process."""
  preemption.install_handlers()
  if hasattr(sys.stdout, 'reconfigure'):
    # Some locales cannot encode every name.
    sys.stdout.reconfigure(errors='backslashreplace')
  flags_lib.define()
  try:
    app.run(main, flags_parser=_parse)
  except SystemExit as ended:
    if isinstance(ended.code, str):
      print(ended.code, file=sys.stderr)
    preemption.exit_process(
        INTERNAL_ERROR if isinstance(ended.code, str) else ended.code or 0,
        _disconnect)


def _disconnect() -> None:
  """Waits for the other processes of the run to end, if there are any."""
  if flags.FLAGS.is_parsed() and flags.FLAGS.mesh_distributed:
    from mansu_jax.runtime import processes
    processes.disconnect()


if __name__ == '__main__':
  run()
