"""The command line: each flag is a field of `config.run.RunConfig`.

A field of a stage has the flag `--<stage>_<field>`; help text and choices come
from the field. `define` defines the flags, `to_config` builds the configuration
from them, and `to_flagfile` writes it back. No other module reads absl flags.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any

from absl import flags
from absl import logging

from mansu_jax.config import fields as config_fields
from mansu_jax.config import methods
from mansu_jax.config import run as config_lib

# Where a run writes, and whether it resumes, do not identify it.
_NOT_IN_FLAGFILE = ('workdir', 'resume')
_MODES_OF_A_METHOD = ('unlearn', 'plan')
_ALIASES = {'chat': 'data_chat', 'edit': 'apply_edit'}
# Accepted until 0.3, and not listed by --help.
_FORMER_NAMES = {
    'unlearn_alternatives_weight': 'unlearn_choice_kl_weight',
    'unlearn_collapse': 'unlearn_max_retain_kl',
    'unlearn_crossed_batch': 'unlearn_swapped_batch',
    'unlearn_crossed_pool': 'unlearn_swapped_pool',
    'unlearn_crossed_weight': 'unlearn_swapped_weight',
    'unlearn_near_share': 'unlearn_nearest_share',
}
_FORMER_VALUES = {'unlearn_loss': {
    'exchange': 'answer_swap', 'marginal': 'group_marginal'}}


class _EnumParser(flags.EnumParser):
  """Accepts the former names of values."""

  def __init__(self, choices: tuple[str, ...], former: dict[str, str]):
    super().__init__(choices)
    self._former = former

  def parse(self, argument: str) -> str:
    return super().parse(self._former.get(argument, argument))


class _AutoParser(flags.IntegerParser):
  """Parses an integer, or `auto` as None."""

  syntactic_help = 'an integer or auto'

  def parse(self, argument: Any) -> int | None:
    return None if argument == 'auto' else super().parse(argument)


class _PairsParser(flags.IntegerParser):
  """Parses the number of pairs; until 0.3 also the name of a pairs file."""

  def parse(self, argument: Any) -> int | str:
    if isinstance(argument, int) or re.fullmatch(r'-?\d*', argument):
      return super().parse(argument)
    return argument


def define(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines every flag. Call it once, before `app.run`."""
  for name, field, default in config_lib.options():
    choices, doc = field.metadata['choices'], _help(field)
    kwargs = {'flag_values': flag_values}
    if name == 'attribution_pairs':
      flags.DEFINE(_PairsParser(), name, default, doc, **kwargs)
    elif default is None:
      flags.DEFINE(_AutoParser(), name, default, doc, **kwargs)
    elif choices:
      flags.DEFINE_enum(name, default, choices, doc, **kwargs)
      if name in _FORMER_VALUES:
        flag_values[name].parser = _EnumParser(choices, _FORMER_VALUES[name])
    elif isinstance(default, bool):
      flags.DEFINE_bool(name, default, doc, **kwargs)
    elif isinstance(default, int):
      flags.DEFINE_integer(name, default, doc, **kwargs)
    elif isinstance(default, float):
      flags.DEFINE_float(name, default, doc, **kwargs)
    elif name.startswith('data_'):
      flags.DEFINE_multi_string(name, list(default), doc, **kwargs)
    elif isinstance(default, tuple):
      flags.DEFINE_list(name, list(default), doc, **kwargs)
    else:
      flags.DEFINE_string(name, default, doc, **kwargs)
    # --help lists the flags of the main program only.
    flag_values.register_key_flag_for_module(sys.argv[0], flag_values[name])
  for name, other in _ALIASES.items():
    flags.DEFINE_alias(name, other, flag_values=flag_values)
    flag_values.register_key_flag_for_module(sys.argv[0], flag_values[name])
  for name, other in _FORMER_NAMES.items():
    flags.DEFINE_alias(name, other, flag_values=flag_values)


def _help(field: dataclasses.Field) -> str:
  """Help text of a flag, with the modes that read it unless all do."""
  modes = field.metadata['modes']
  if set(modes) >= set(config_fields.RUN_MODES):
    return field.metadata['help']
  label = 'Mode' if len(modes) == 1 else 'Modes'
  return f'{field.metadata["help"]} ({label}: {", ".join(modes)}.)'


def to_config(
    flag_values: flags.FlagValues = flags.FLAGS) -> config_lib.RunConfig:
  """Builds the configuration from parsed flags.

  A method gives the flags that it needs, unless they are given.

  Raises:
    ValueError: A value is out of range, or flags contradict each other.
  """

  def value(name: str) -> Any:
    got = getattr(flag_values, name)
    return tuple(got) if isinstance(got, list) else got

  stages = config_lib.stages()
  fields = {
      stage: {f.name: value(f'{stage}_{f.name}')
              for f in dataclasses.fields(stage_class)}
      for stage, stage_class in stages.items()
  }
  if flag_values['mode'].value in _MODES_OF_A_METHOD:
    for name, wanted in methods.implied(
        value('method'), value('circuit_selection')).items():
      if not flag_values[name].present:
        stage, _, field = name.partition('_')
        fields[stage][field] = wanted
  _move_pairs_file(fields['attribution'])
  built = {name: stages[name](**values) for name, values in fields.items()}
  top = {f.name: value(f.name)
         for f in dataclasses.fields(config_lib.RunConfig)
         if f.name not in stages}
  return config_lib.RunConfig(**top, **built)


def _move_pairs_file(attribution: dict[str, Any]) -> None:
  """Moves a file name in --attribution_pairs to --attribution_pairs_file."""
  path = attribution['pairs']
  if isinstance(path, str):
    logging.warning(
        '--attribution_pairs=FILE is deprecated; use'
        ' --attribution_pairs_file=%s.', path)
    attribution['pairs_file'] = attribution['pairs_file'] or path
    attribution['pairs'] = config_lib.AttributionConfig().pairs


def from_flagfile(path: str, *overrides: str) -> config_lib.RunConfig:
  """Reads the configuration in a flagfile, for notebooks and scripts.

  Args:
    path: Name of the flagfile.
    *overrides: Flags as on the command line, such as '--seed=1', which override
      those of the file.

  Raises:
    ValueError: The file contains an unknown flag or something else than flags,
      or as `to_config`.
  """
  return parse(f'--flagfile={path}', *overrides, where=path)


def parse(*args: str, where: str) -> config_lib.RunConfig:
  """Builds the configuration from arguments of a command line.

  Args:
    *args: Flags; a later one overrides an earlier one.
    where: Name of the file that the message of an error names.

  Raises:
    ValueError: As `from_flagfile`.
  """
  flag_values = flags.FlagValues()
  define(flag_values)
  try:
    _, *rest = flag_values(['mansu_jax', *args])
  except (flags.Error, UnicodeDecodeError) as error:
    raise ValueError(f'{where}: {error}. See --help.') from error
  if rest:
    raise ValueError(f'{where}: {rest} are not flags; write --name=value, and #'
                     ' in the first column of a comment.')
  return to_config(flag_values)


def to_flagfile(config: config_lib.RunConfig) -> str:
  """The text of a flagfile that repeats the run in another workdir."""
  lines = [line for name, _, value in config_lib.options(config)
           if name not in _NOT_IN_FLAGFILE
           for line in config_fields.flag_lines(name, value)]
  return '\n'.join(lines) + '\n'
