"""Refuses flags that the mode of a run does not read.

The metadata of a field names the modes that read its flag. `_CONDITIONS` lists
the flags whose use also depends on other flags.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import pathlib
from typing import NamedTuple

from mansu_jax.config import fields
from mansu_jax.config import methods
from mansu_jax.config import run as run_config


class _Condition(NamedTuple):
  """Flags that have no effect together with certain other flags.

  Attributes:
    flags: Names of the flags.
    is_unread: Whether a run ignores them.
    reason: Why, as the second half of an error message.
  """

  flags: tuple[str, ...]
  is_unread: Callable[[run_config.RunConfig], bool]
  reason: Callable[[run_config.RunConfig], str]


def check_unread_flags(config: run_config.RunConfig) -> None:
  """Raises ValueError on a changed flag that this run would ignore.

  An audit without a base, or whose base is the model itself, is refused too.
  """
  _check_base(config)
  for name, field, value in run_config.options(config):
    if value == field.default:
      continue
    if reason := _why_unread(name, field, config):
      raise ValueError(
          f'{fields.flag_lines(name, value)[0]} has no effect in'
          f' --mode={config.mode}: {reason}. Leave it out.')


def _why_unread(
    name: str, field: dataclasses.Field, config: run_config.RunConfig) -> str:
  """The reason why a run ignores a flag; '' if it reads the flag."""
  modes = field.metadata['modes']
  if config.mode not in modes:
    return f'it applies to {" and ".join(f"--mode={mode}" for mode in modes)}'
  if config.mode in fields.MODES_OF_CELLS:
    return ''  # Its runs are checked, each with the flags of its method.
  return next((condition.reason(config) for condition in _CONDITIONS
               if name in condition.flags and condition.is_unread(config)), '')


def _check_base(config: run_config.RunConfig) -> None:
  """Raises ValueError if an audit has no base, or the model itself as base."""
  if config.mode == 'apply' and not (config.base and config.apply.edit):
    raise ValueError(
        f'--mode=apply edits --base={config.base} as in the file'
        f' --edit={config.apply.edit}; wanted both. Give --base=B, a model'
        ' directory, hub id, .gguf file or wheel, and --edit=F, the'
        ' edit.safetensors of a run.')
  if config.mode != 'audit':
    return
  if not config.base:
    raise ValueError(
        f'--mode=audit compares --model={config.model} with the model before'
        ' unlearning, but --base is not set; wanted both. Give --base=B, a'
        ' model directory, hub id, .gguf file or wheel.')
  if _resolved(config.base) == _resolved(config.model):
    raise ValueError(
        f'--base={config.base} and --model={config.model} are one model; wanted'
        ' a model and its state before unlearning. Name the unlearned one with'
        ' --model.')


def _resolved(name: str) -> str:
  """The absolute path of a model that is a file or folder; else its name."""
  path = pathlib.Path(name)
  return str(path.resolve()) if path.exists() else name


def _attributes_edges(config: run_config.RunConfig) -> bool:
  return config.mode == 'attribute' and config.attribution.level == 'edge'


def _measures_file(config: run_config.RunConfig) -> bool:
  return _attributes_edges(config) and bool(config.circuit.file)


def _attributes_pairs_file(config: run_config.RunConfig) -> bool:
  return config.mode == 'attribute' and bool(config.attribution.pairs_file)


def _attributes_once(config: run_config.RunConfig) -> bool:
  """Whether an attribution selects no circuit from resampled pairs."""
  return config.mode == 'attribute' and bool(
      config.circuit.file or not config.circuit.resamples)


def _other_loss(*losses: str) -> Callable[[run_config.RunConfig], str]:
  """The reason why the loss of a run does not read a flag of others."""
  wanted = ' or '.join(f'--unlearn_loss={loss}' for loss in losses)
  return lambda config: (f'it applies to {wanted}, but the loss is'
                         f' --unlearn_loss={config.unlearn.loss}')


def _no_attack_but(*kinds: str) -> Callable[[run_config.RunConfig], bool]:
  return lambda config: (config.mode in fields.EVALUATION_MODES
                         and {*config.eval.attacks} <= {*kinds})


def _closed_form(config: run_config.RunConfig) -> bool:
  return config.method in methods.CLOSED_FORMS


# What closed forms read of the options of training: which sequences there are,
# and what the record says of the result.
_OF_CLOSED_FORMS = (
    'loss', 'quantizer_in_loop', 'forget_batch', 'retain_batch', 'text_batch',
    'forget_pool', 'retain_pool', 'text_pool', 'nearest_share', 'text_weight',
    'forget_leaks', 'max_retain_kl', 'probe_every')
_OF_STEPS = tuple(
    f'unlearn_{field.name}'
    for field in dataclasses.fields(run_config.UnlearnConfig)
    if field.name not in _OF_CLOSED_FORMS and not field.name.startswith((
        'closed_form_', 'swapped_')))

_CONDITIONS = (
    _Condition(
        _OF_STEPS, _closed_form,
        lambda config: f'--method={config.method} is a closed form, which takes'
        ' no steps'),
    _Condition(
        ('unlearn_closed_form_layers', 'unlearn_closed_form_scale',
         'unlearn_closed_form_retain_weight', 'unlearn_closed_form_ridge'),
        lambda config: not _closed_form(config),
        lambda config: 'it applies to'
        f' {" and ".join(f"--method={name}" for name in methods.CLOSED_FORMS)},'
        f' but the method is --method={config.method}'),
    _Condition(
        ('circuit_edges', 'circuit_edge_selection', 'circuit_file'),
        lambda config: config.attribution.level != 'edge',
        lambda config: 'it applies to --attribution_level=edge, but the level'
        f' is --attribution_level={config.attribution.level}'),
    _Condition(
        ('circuit_selection', 'circuit_budget'), _attributes_edges,
        lambda config: 'at --attribution_level=edge, --circuit_edges sets the'
        ' size of the circuit'),
    _Condition(
        ('circuit_contrast', 'circuit_edges', 'circuit_first_layer',
         'circuit_last_layer', 'circuit_per_layer_cap', 'circuit_resamples'),
        _measures_file,
        lambda config: f'--circuit_file={config.circuit.file} gives the'
        ' circuit, so that none is selected'),
    _Condition(
        ('data_forget',), _attributes_pairs_file,
        lambda config: 'the pairs come from --attribution_pairs_file='
        f'{config.attribution.pairs_file}'),
    _Condition(
        ('data_retain',),
        lambda config: (_attributes_pairs_file(config)
                        and not config.circuit.contrast),
        lambda config: 'the pairs come from --attribution_pairs_file='
        f'{config.attribution.pairs_file}, and only --circuit_contrast needs'
        ' retain pairs'),
    _Condition(
        ('eval_attack_questions', 'eval_attack_rates', 'eval_attack_shares',
         'eval_attack_steps'),
        lambda config: (config.mode in fields.EVALUATION_MODES
                        and not config.eval.attacks),
        lambda config: '--eval_attacks= skips the attacks'),
    _Condition(
        ('eval_attack_shares',), _no_attack_but('benign', 'few_shot'),
        lambda config: 'no attack trains on forget facts with --eval_attacks='
        + ','.join(config.eval.attacks)),
    _Condition(
        ('eval_attack_rates', 'eval_attack_steps'), _no_attack_but('few_shot'),
        lambda config: 'no attack trains with --eval_attacks=few_shot'),
    _Condition(
        ('eval_bootstrap',), _attributes_once,
        lambda config: 'no circuit is selected from resampled pairs'),
    _Condition(
        ('eval_questions',),
        lambda config: (_attributes_once(config)
                        or _attributes_pairs_file(config)),
        lambda config: 'no other phrasings are compared'),
    _Condition(
        ('unlearn_choice_kl_weight', 'unlearn_orthogonal', 'unlearn_saliency'),
        lambda config: config.unlearn.loss == 'none',
        lambda config: '--unlearn_loss=none has no forget term'),
    *(_Condition(
        (f'unlearn_{name}',),
        lambda config, losses=losses: config.unlearn.loss not in losses,
        _other_loss(*losses)) for name, losses in (
            ('npo_beta', ('npo', 'simnpo', 'dpo')),
            ('satimp_importance', ('satimp',)),
            ('satimp_saturation', ('satimp',)),
            ('rmu_layer', ('rmu',)), ('rmu_coefficient', ('rmu',)),
            ('quail_margin', ('quail',)),
            ('task_vector_scale', ('task_vector',)),
            ('undial_strength', ('undial',)), ('wga_power', ('wga',)))),
    _Condition(
        ('unlearn_matrices', 'unlearn_first_layer', 'unlearn_last_layer',
         'unlearn_saliency'),
        lambda config: (config.circuit.selection != 'all'
                        or config.unlearn.lora_rank > 0),
        lambda config: 'it applies to --circuit_selection=all without'
        ' --unlearn_lora_rank; --circuit_first_layer and --circuit_last_layer'
        ' are those of a circuit'),
    _Condition(
        ('unlearn_orthogonal',),
        lambda config: not (config.unlearn.kl_weight
                            or config.unlearn.nll_weight),
        lambda config: '--unlearn_kl_weight=0 and --unlearn_nll_weight=0 leave'
        ' no other term'),
    _Condition(
        ('unlearn_saliency',), lambda config: not config.unlearn.forget_weight,
        lambda config: '--unlearn_forget_weight=0 leaves no forget gradient'),
    _Condition(
        ('unlearn_cooldown',), lambda config: not config.unlearn.patience,
        lambda config: 'it applies to --unlearn_patience above 0'),
    *(_Condition(
        (f'unlearn_{name}',),
        lambda config, name=name: config.unlearn.loss != 'prior' and bool(
            getattr(config.unlearn, name)),
        _other_loss('prior'))
      for name in ('guess_weight', 'marginal_weight', 'routed_weight')),
    _Condition(
        ('unlearn_guess_margin', 'unlearn_quantized_guess_margin'),
        lambda config: config.unlearn.loss != 'prior' or (
            not config.unlearn.guess_weight),
        lambda config: 'it applies to --unlearn_loss=prior with'
        ' --unlearn_guess_weight above 0'),
    _Condition(
        ('unlearn_lora_alpha',), lambda config: not config.unlearn.lora_rank,
        lambda config: 'it applies to --unlearn_lora_rank above 0'),
)
