"""The command line: every flag is a field of `config.RunConfig`.

A stage's field is `--<stage>_<field>`; the description and the choices come
from the field itself. This is the only module that reads absl flags.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any

from absl import flags
from absl import logging

from mansu_jax.config import run as config_lib

# In RunConfig, but not part of a run's identity.
_NOT_REPEATED = ('workdir', 'resume')
_ALIASES = {'chat': 'data_chat'}  # The contract's name.
# Accepted until 0.3, and absent from --help.
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
  """Replaces former values by the current ones."""

  def __init__(self, choices: tuple[str, ...], former: dict[str, str]):
    super().__init__(choices)
    self._former = former

  def parse(self, argument: str) -> str:
    return super().parse(self._former.get(argument, argument))


class _PairsParser(flags.IntegerParser):
  """A number of pairs; until 0.3 also a file, which --attribution_pairs took."""

  def parse(self, argument: Any) -> int | str:
    if isinstance(argument, int) or re.fullmatch(r'-?\d*', argument):
      return super().parse(argument)
    return argument


def _options(config_class: type) -> list[tuple[str, dataclasses.Field]]:
  """All `(flag name, field)` of a run, top-level ones first."""
  stages = config_lib.stages(config_class)
  out = [(f.name, f) for f in dataclasses.fields(config_class)
         if f.name not in stages]
  for stage, stage_class in stages.items():
    out += [(f'{stage}_{f.name}', f) for f in dataclasses.fields(stage_class)]
  return out


def define(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines every flag; call once before `app.run`."""
  for name, field in _options(config_lib.RunConfig):
    default, doc = field.default, field.metadata['help']
    choices = field.metadata.get('choices')
    kwargs = {'flag_values': flag_values}
    if name == 'attribution_pairs':
      flags.DEFINE(_PairsParser(), name, default, doc, **kwargs)
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


def to_config(
    flag_values: flags.FlagValues = flags.FLAGS) -> config_lib.RunConfig:
  """Builds the config; raises ValueError where flags are wrong together."""

  def value(name: str) -> Any:
    got = getattr(flag_values, name)
    return tuple(got) if isinstance(got, list) else got

  stages = config_lib.stages()
  fields = {
      stage: {f.name: value(f'{stage}_{f.name}')
              for f in dataclasses.fields(stage_class)}
      for stage, stage_class in stages.items()
  }
  _move_pairs_file(fields['attribution'])
  built = {name: stages[name](**values) for name, values in fields.items()}
  top = {f.name: value(f.name)
         for f in dataclasses.fields(config_lib.RunConfig)
         if f.name not in stages}
  return config_lib.RunConfig(**top, **built)


def _move_pairs_file(attribution: dict[str, Any]) -> None:
  """Moves a file that --attribution_pairs names to --attribution_pairs_file."""
  path = attribution['pairs']
  if isinstance(path, str):
    logging.warning(
        '--attribution_pairs=FILE is deprecated; use'
        ' --attribution_pairs_file=%s.', path)
    attribution['pairs_file'] = attribution['pairs_file'] or path
    attribution['pairs'] = config_lib.AttributionConfig().pairs


def from_flagfile(path: str, *overrides: str) -> config_lib.RunConfig:
  """The config of a flagfile, for notebooks and scripts.

  Args:
    path: the flagfile.
    *overrides: flags as on the command line, such as '--seed=1'; they come
      after the file's.

  Raises:
    ValueError: a flag that does not exist, what is not a flag, or flags that
      are wrong together.
  """
  flag_values = flags.FlagValues()
  define(flag_values)
  try:
    _, *rest = flag_values(['mansu_jax', f'--flagfile={path}', *overrides])
  except (flags.Error, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: {error}. See --help.') from error
  if rest:
    raise ValueError(f'{path}: {rest} are not flags; write --name=value, and #'
                     ' in the first column of a comment.')
  return to_config(flag_values)


def to_flagfile(config: config_lib.RunConfig) -> str:
  """The text of a flagfile that repeats the run, without its workdir."""
  stages = config_lib.stages()
  lines = []
  for name, field in _options(config_lib.RunConfig):
    if name in _NOT_REPEATED:
      continue
    stage = next((s for s in stages if name.startswith(f'{s}_')
                  and field in dataclasses.fields(stages[s])), None)
    value = getattr(getattr(config, stage) if stage else config, field.name)
    if isinstance(value, bool):
      lines.append(f'--{"" if value else "no"}{name}')
    elif name.startswith('data_') and isinstance(value, tuple):
      lines += [f'--{name}={v}' for v in value]
    elif isinstance(value, tuple):
      lines.append(f'--{name}={",".join(value)}')
    else:
      lines.append(f'--{name}={value}')
  return '\n'.join(lines) + '\n'
