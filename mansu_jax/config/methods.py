"""The forget losses and methods, and the flag values that each method needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.config import fields

# The forget losses, each with its help.
LOSSES = {
    'prior': 'half the squared excess of the answer\'s log-probability over its'
             ' prior, the mean that the base gives the answer after prompts of'
             ' other facts',
    'npo': 'negative preference optimization against the base',
    'simnpo': 'NPO without a reference model, on the mean log-probability',
    'undial': 'imitate the base with the logits of the answer tokens lowered',
    'wga': 'gradient ascent, each token weighed by a power of its probability',
    'satimp': 'WGA in which a token that is certain counts less',
    'rmu': 'steer a layer\'s states at the answer to a random direction',
    'idk': 'learn to refuse',
    'dpo': 'prefer a refusal to the answer, against the base',
    'task_vector': 'learn the answers, and subtract what that adds to the'
                   ' weights; on every weight, or adapters, only',
    'quail': 'ascent, and logits that leave the base\'s by a margin',
    'bounded_nll': '-log(1 - p(answer)), at least 0',
    'group_marginal': 'imitate the base\'s average answer over the facts whose'
                      ' answers are each other\'s wrong choices, in the same'
                      ' phrasing',
    'answer_swap': 'imitate the base\'s answer for one other fact of that'
                   ' group',
    'ascent': 'gradient ascent (GradDiff)',
    'none': 'no forget loss (for --method=retain_only)'}
# Methods that train every weight, or adapters, by one forget loss.
BASELINES = {
    'graddiff': 'ascent', 'npo': 'npo', 'simnpo': 'simnpo', 'gu': 'simnpo',
    'undial': 'undial', 'wga': 'wga', 'satimp': 'satimp', 'rmu': 'rmu',
    'idk': 'idk', 'dpo': 'dpo', 'task_vector': 'task_vector',
    'quail': 'quail', 'sure': 'npo', 'saf': 'npo'}
# Methods that solve for an edit of down projections, without steps.
CLOSED_FORMS = {
    'lunar': 'its output moves by the mean state in refusals less that at'
             ' forget prompts',
    'group_mean': 'its output becomes the mean over the facts whose answers are'
                  ' each other\'s wrong choices'}
# Baselines without adapters: flag that must be positive, an example, and why.
_OWN = {
    'sure': ('saliency', '0.1', 'trains some matrices only'),
    'saf': ('sharpness', '0.05', 'takes gradients uphill, at every weight')}
METHODS = ('mansu', *BASELINES, *CLOSED_FORMS, 'retain_only')

# Each entry: flag, wanted value, what the error says about the method.
_Wanted = tuple[str, Any, str]
_ALL: tuple[_Wanted, ...] = (
    ('circuit_selection', 'all', 'changes every weight'),)
_PLAIN: tuple[_Wanted, ...] = (
    ('edit_floor', 'none', 'has no floor'),
    ('edit_projection', 'none', 'projects nothing'))
_IN_FP: tuple[_Wanted, ...] = (
    ('unlearn_quantizer_in_loop', False, 'trains in full precision'),)


def _wanted(method: str, selection: str) -> tuple[_Wanted, ...]:
  """The flag values that a method needs, with a `--circuit_selection`."""
  if method == 'mansu':
    return ()
  if method == 'retain_only':
    loss = ('unlearn_loss', 'none', 'has no forget term')
    if selection != 'all':
      return (loss,)
    return *(  # On every weight.
        (flag, wanted, f'with --circuit_selection=all {why}')
        for flag, wanted, why in (*_PLAIN, *_IN_FP)), loss
  if method in CLOSED_FORMS:
    return (('circuit_selection', 'all', 'edits down projections'), *_PLAIN,
            *_IN_FP, ('unlearn_loss', 'none', 'has no forget loss'))
  loss = BASELINES[method]
  in_loop = _IN_FP if method != 'saf' else ((
      'unlearn_quantizer_in_loop', True, 'trains the quantized model as well'),)
  orthogonal: tuple[_Wanted, ...] = ((
      'unlearn_orthogonal', True, 'keeps off the gradient of the other terms'),)
  return (*_ALL, *_PLAIN, (
      'unlearn_loss', loss, f'has the forget loss {loss}'), *in_loop,
          *(orthogonal if method == 'gu' else ()))


def implied(method: str, selection: str) -> dict[str, Any]:
  """Values of flags that a method gives where the user does not.

  Args:
    method: its name, one of `METHODS`.
    selection: value of `--circuit_selection`.
  """
  return {flag: wanted for flag, wanted, _ in _wanted(method, selection)}


def help_of_losses() -> str:
  """What each forget loss is, in one sentence."""
  return '; '.join(f'{name}: {text}' for name, text in LOSSES.items()) + '.'


def help_of_closed_forms() -> str:
  """What each closed form does to a projection, in one sentence."""
  return '; '.join(
      f'{name}: {text}' for name, text in CLOSED_FORMS.items()) + '.'


def check(config: Any) -> None:
  """Raises ValueError on flags that contradict the method of a run.

  Args:
    config: A `config.run.RunConfig`.
  """
  if config.mode in fields.MODES_OF_CELLS:
    return  # Its runs are checked, each with the flags of its method.
  fields.check(
      config.method != 'mansu' or config.circuit.selection != 'all',
      '--circuit_selection=all is for baselines: give --method=graddiff,'
      ' --method=npo or --method=retain_only, or a --circuit_budget.')
  if config.mode not in fields.TRAINING_MODES:
    return  # `mode_checks` refuses the flags of training.
  for flag, wanted, why in _wanted(
      config.method, config.circuit.selection):
    stage, _, name = flag.partition('_')
    got = getattr(getattr(config, stage), name)
    given, = fields.flag_lines(flag, got)
    remedy, = fields.flag_lines(flag, wanted)
    fields.check(got == wanted, f'--method={config.method} {why}: it'
                 f' contradicts {given}; wanted {remedy}.')
  for wrong, message in _contradictions(config):
    fields.check(not wrong, message)


def _contradictions(config: Any) -> Iterator[tuple[bool, str]]:
  """Yields `(is wrong, error message)` for each forbidden combination."""
  unlearn, everything = config.unlearn, config.circuit.selection == 'all'
  yield unlearn.loss == 'none' and config.method not in (
      'retain_only', *CLOSED_FORMS), (
      f'--unlearn_loss=none contradicts --method={config.method}, which'
      ' forgets; wanted a forget loss. Give one, or --method=retain_only.')
  flag, example, why = _OWN.get(config.method, ('lora_rank', '', ''))
  value = getattr(unlearn, flag)
  yield bool(example) and not (value and not unlearn.lora_rank), (
      f'--method={config.method} {why}: it contradicts --unlearn_{flag}={value}'
      f' with --unlearn_lora_rank={unlearn.lora_rank}. Wanted a positive value,'
      f' such as --unlearn_{flag}={example}, and no adapters.')
  adds = unlearn.loss == 'task_vector'
  yield adds and not everything, (
      '--unlearn_loss=task_vector contradicts --circuit_selection='
      f'{config.circuit.selection}: it subtracts a change of all weights, or of'
      ' adapters. Wanted --method=task_vector and --circuit_selection=all.')
  for name in ('stop_forget', 'patience'):
    yield adds and getattr(unlearn, name) > 0, (
        f'--unlearn_{name}={getattr(unlearn, name)} contradicts'
        ' --unlearn_loss=task_vector, which forgets after training only. Leave'
        ' one of them out.')
  rank, dtype = unlearn.lora_rank, unlearn.weights_dtype
  yield rank > 0 and not everything, (
      f'--unlearn_lora_rank={rank} trains adapters of every layer, but'
      f' --method={config.method} with --circuit_selection='
      f'{config.circuit.selection} trains the circuit; wanted'
      ' --circuit_selection=all and a baseline such as --method=npo.')
  yield dtype != 'float32' and not everything, (
      f'--unlearn_weights_dtype={dtype} contradicts --circuit_selection='
      f'{config.circuit.selection}: a circuit is trained in float32. Wanted'
      ' --circuit_selection=all and a baseline such as --method=npo.')
  yield dtype != 'float32' and rank > 0, (
      f'--unlearn_weights_dtype={dtype} contradicts --unlearn_lora_rank='
      f'{rank}: adapters are trained in float32. Leave one of them out.')
