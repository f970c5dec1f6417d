"""The hidden share of a run, at every precision, with its gates; property S."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import splits as splits_lib
from mansu_jax.erasure import hidden_share
from mansu_jax.erasure import mover_layer
from mansu_jax.erasure import spans
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import files
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import answer_layers
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.statistics import verdict

OTHERS = 2  # Other facts whose states each question gets.
_KEPT = 4  # One retain question for so many forget questions.


class NotMeasured(ValueError):
  """The hidden share cannot be measured, with a reason in plain words."""


# Why a run has no hidden share.
REASONS = (NotMeasured, answer_layers.TooFew, mover_layer.NoLead)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
  """The questions of the measurement.

  Attributes:
    train: in training phrasings, for the mover layer.
    forget: that the hidden share asks.
    retain: about retained facts; None if there are too few.
  """

  train: spans.Questions
  forget: spans.Questions
  retain: spans.Questions | None


def choose(
    inputs: inputs_lib.Inputs, tokenizer: types.Tokenizer, *, limit: int,
    seed: int, chat: bool) -> Asked:
  """Chooses the questions.

  Forget questions are those whose wrong choices training has not seen, where
  the data have them, and otherwise the near and far ones.

  Args:
    inputs: questions by split.
    tokenizer: the model's tokenizer.
    limit: largest number of forget questions.
    seed: seed of the draw and of the partners.
    chat: whether prompts take the tokenizer's chat form.

  Raises:
    NotMeasured: --eval_hidden_questions is 0.
    answer_layers.TooFew: there are too few questions.
  """
  if not limit:
    raise NotMeasured('--eval_hidden_questions=0 skips it')
  evaluation = inputs.splits.evaluation
  unseen = splits_lib.OF_READING['choice_unseen']
  asked = [q for split in unseen for q in evaluation.get(split, ())] or [
      q for split in splits_lib.FORGOTTEN for q in evaluation[split]]

  def draw(questions, what, limit, others=OTHERS):
    return answer_layers.draw(
        questions, what, tokenizer, limit=limit, others=others, seed=seed,
        chat=chat)

  forget = draw(asked, 'forget questions (use near or far)', limit)
  train = draw(inputs.splits.forget_train, 'forget questions (use train)',
               min(limit, answer_layers.QUESTIONS), others=1)
  try:
    retain = draw(evaluation['retain'], 'retain questions',
                  max(limit // _KEPT, answer_layers.LEAST))
  except answer_layers.TooFew as error:
    logging.warning('No retained facts test the hidden share: %s', error)
    retain = None
  return Asked(train=train, forget=forget, retain=retain)


def measure(
    settings: settings_lib.Settings, options: run_config.EvalConfig,
    inputs: inputs_lib.Inputs, quantize: quantizers.Quantizers,
    model: loading.LoadedModel, unlearned: types.Params,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> dict[str, Any]:
  """The hidden share at every precision, its gates, and property S; JSON-able.

  Args:
    settings: seed and chat form.
    options: numbers of questions and resamples.
    inputs: questions.
    quantize: the run's quantizers.
    model: the base.
    unlearned: full params after unlearning.
    cache: keeps the result for a resumed run.

  Returns:
    `structure`, `S`, and `lines`, the answers to each question. A structure
    that is not measured holds a `reason`, and S is then inconclusive.
  """
  def make():
    try:
      asked = choose(
          inputs, model.tokenizer, limit=options.hidden_questions,
          seed=settings.seed, chat=settings.chat)
      return _ask(settings, asked, quantize, model, unlearned)
    except REASONS as error:
      return {'reason': str(error)}

  answered = cache.get_or_compute_json('hidden_share_answers', make)
  lines = answered.get('lines', [])
  found = of_answers(
      answered, resamples=options.bootstrap, seed=settings.seed)
  if 'reason' in found['structure']:
    logging.warning('The hidden share is not measured: %s',
                    found['structure']['reason'])
  return found | {'lines': lines}


def of_answers(
    answered: Mapping[str, Any], *, resamples: int, seed: int
) -> dict[str, Any]:
  """The record's `structure` and its part of property S.

  Args:
    answered: `mover_layer` and `by_layer` as in the record, `sharp`, whether
      the gate on the mover layer holds, and `lines`, those of
      `hidden_share.jsonl`; or a `reason` why nothing was asked.
    resamples: number of bootstrap resamples.
    seed: seed of the resamples.
  """
  try:
    if 'reason' in answered:
      raise NotMeasured(answered['reason'])
    structure = _structure(answered, dict(resamples=resamples, seed=seed))
  except NotMeasured as error:
    why = f'the hidden share is not measured: {error}'
    known = ('mover_layer', 'by_layer', 'sharp')
    return {'structure': {'reason': str(error)} | {
        key: answered[key] for key in known if key in answered},
            'S': verdict.missing(why, hidden_share.LARGEST)}
  return {'structure': structure, 'S': hidden_share.judge(
      structure['hidden_share'], structure['gates'],
      readings=structure['readings'], facts=structure['facts'])}


def write(found: Mapping[str, Any], root: pathlib.Path) -> None:
  """Writes `hidden_share.jsonl`: how often each question is answered.

  A line has its `fact`, and for each model, by reading, how often it is
  answered right, and guessed: for the `base`, for `unlearned` at each
  precision, and for the gates `noise`, `base_quantized` by quantizer, and
  `replaced`, how often the base is right with other facts' states. A `retained`
  line is of the gate on retained facts.

  Args:
    found: from `measure`.
    root: folder of the run.
  """
  if found['lines']:
    files.write_text(root / 'hidden_share.jsonl', ''.join(
        json.dumps(line, ensure_ascii=False) + '\n'
        for line in found['lines']))


def _ask(
    settings: settings_lib.Settings, asked: Asked,
    quantize: quantizers.Quantizers, model: loading.LoadedModel,
    unlearned: types.Params) -> dict[str, Any]:
  """What `of_answers` takes."""
  _check_facts(asked.forget.facts.tolist())
  config, base = model.config, model.params
  known = settings.layers
  if known is not None and known.source == 'forget':  # The run has found it.
    mover = known.mover
  else:
    mover = mover_layer.find(config, base, asked.train)
  host = hidden_share.Host(config, base, asked.forget, mover.layer)
  lines = _lines(
      host, unlearned={
          precision: host.answers(view(unlearned), describe=True)
          for precision, view in quantize.views().items()},
      noise=host.answers(hidden_share.noise_like(
          base, unlearned, seed=settings.seed)),
      base_quantized={name: host.answers(quantize(name, base))
                      for name in quantize.names},
      replaced=host.replaced)
  if asked.retain is not None:
    host = hidden_share.Host(config, base, asked.retain, mover.layer)
    lines += [line | {'retained': True}
              for line in _lines(host, unlearned=host.answers(unlearned))]
  return {'mover_layer': mover.layer, 'by_layer': mover.removed,
          'sharp': mover.sharp, 'lines': lines}


def _lines(host: hidden_share.Host, **found: Any) -> list[dict[str, Any]]:
  """What was found of each question: entries of nested arrays [..., n]."""
  found = {'base': host.own, **found}
  return [{'fact': fact} | _at(found, i)
          for i, fact in enumerate(host.questions.facts.tolist())]


def _at(found: Any, i: int) -> Any:
  """Question i of nested arrays [..., n]; keeps the order of keys."""
  if isinstance(found, dict):
    return {key: _at(value, i) for key, value in found.items()}
  return found[..., i].tolist()


def _columns(lines: Sequence[Mapping[str, Any]], *path: str) -> Any:
  """The arrays [..., n] at a path of the lines' entries."""
  entries = [functools.reduce(lambda x, key: x[key], path, line)
             for line in lines]
  if not isinstance(entries[0], dict):
    return np.moveaxis(np.array(entries), 0, -1)
  return {key: _columns(lines, *path, key) for key in entries[0]}


def _structure(
    answered: Mapping[str, Any], resampling: Mapping[str, int]
) -> dict[str, Any]:
  """`structure` of the record; see `of_answers`."""
  layer, removed = answered['mover_layer'], answered['by_layer']
  lines = [line for line in answered['lines'] if not line.get('retained')]
  kept = [line for line in answered['lines'] if line.get('retained')]
  found = _columns(lines, 'unlearned')
  shares = _shares(lines, resampling)
  gates = {
      'sharp_mover': _sharp(layer, removed, answered['sharp']),
      'another_fact': _absent(shares, lines),
      'noise': _harmless(shares, _columns(lines, 'noise'))}
  if quantized := _columns(lines, 'base_quantized'):
    gates['base_quantized'] = min(
        ({'precision': name} | _harmless(shares, answers, forgets=True)
         for name, answers in quantized.items()),
        key=lambda gate: (gate['holds'], gate['value']))
  gates['retained'] = _retained(kept, resampling)
  joint = _shares(lines, resampling, precisions=len(found))
  return {
      'mover_layer': layer, 'by_layer': removed,
      'readings': [k for k in hidden_share.LEFT if shares.defined(k)],
      'hidden_share': {p: _hidden(joint, own) for p, own in found.items()},
      'gates': gates, 'questions': len(lines), 'facts': _count_facts(lines),
      'answered': dict(zip(('base', 'guessed'), map(
          float, _columns(lines, 'base', hidden_share.OWN).mean(1))))}


def _hidden(
    shares: hidden_share.Shares, answers: hidden_share.Answers
) -> dict[str, Any]:
  """The hidden share at a precision, and what is left."""
  return {
      **shares.hidden(answers), **shares.described(answers),
      **shares.most_left(answers),
      'answered': {k: float(v[0].mean()) for k, v in answers.items()}}


def _shares(
    lines: Sequence[Mapping[str, Any]], options: Mapping[str, int],
    precisions: int = 1) -> hidden_share.Shares:
  """Shares of what the base knows; NotMeasured if it does not lead."""
  base, facts = _columns(lines, 'base'), [line['fact'] for line in lines]
  _check_facts(facts)
  shares = hidden_share.Shares(
      np.array(facts), base, precisions=precisions,
      **options)
  if not shares.defined():
    right, guessed = base[hidden_share.OWN].mean(1)
    raise NotMeasured(
        f'the base answers {right:.3g} of the questions and {guessed:.3g} in'
        ' prompts about other facts; wanted a lead of at least'
        f' {hidden_share.LEAST_LEAD:g}, above 0 in every resample')
  return shares


def _count_facts(lines: Sequence[Mapping[str, Any]]) -> int:
  return len({line['fact'] for line in lines})


def _check_facts(facts: Sequence[str]) -> None:
  """Raises NotMeasured if all questions are about one fact."""
  if len(set(facts)) < 2:
    raise NotMeasured(
        f'all {len(facts)} questions ask about one fact; intervals by fact need'
        ' at least two')


def _sharp(
    layer: int, removed: Sequence[float], sharp: bool) -> dict[str, Any]:
  """Whether one layer moves the answer."""
  after = [*removed, 0.0][layer + 1]
  return {'value': removed[layer], 'interval': [None, None],
          'level': mover_layer.REMOVED, 'next_layer': after,
          'next_level': mover_layer.KEPT, 'holds': sharp}


def _absent(
    shares: hidden_share.Shares, lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """The gate on other facts' states at the span, which must end the answers."""
  guessed = _columns(lines, 'base', hidden_share.OWN)[1]
  value = shares.share({hidden_share.OWN: np.stack(
      [_columns(lines, 'replaced'), guessed])})
  level = hidden_share.LARGEST
  return {'value': value, 'interval': [None, None], 'level': level,
          'holds': value <= level}


def _left(
    shares: hidden_share.Shares, answers: hidden_share.Answers,
    forgets: bool = False) -> dict[str, Any]:
  """The gate on params whose change must leave the answers.

  Args:
    shares: shares of the base.
    answers: answers with these params.
    forgets: whether the model may forget, as a quantized one does: then what
      it answers itself must be read.
  """
  found = max(shares.left(answers), key=lambda one: one['value'])
  level = hidden_share.HARMLESS
  if forgets:
    level = round(level * min(max(shares.share(answers), 0), 1), 4)
  return found | shares.described(answers) | {
      'level': level, 'holds': found['value'] >= level}


def _harmless(
    shares: hidden_share.Shares, answers: hidden_share.Answers,
    forgets: bool = False) -> dict[str, Any]:
  """The gate on params whose change must leave the answers and hide none."""
  found, hidden = _left(shares, answers, forgets), shares.hidden(answers)
  most = hidden_share.LARGEST
  return found | {
      'hidden': {k: hidden[k] for k in ('reading', 'value', 'interval')},
      'hidden_level': most, 'holds': found['holds'] and (
          hidden['interval_of_all'][0] <= most)}


def _retained(
    lines: Sequence[Mapping[str, Any]], resampling: Mapping[str, int]
) -> dict[str, Any]:
  """The gate on retained facts, with the edited model's states."""
  try:
    if not lines:
      raise NotMeasured('there are too few retain questions with partners')
    shares = _shares(lines, resampling)
    return _left(shares, _columns(lines, 'unlearned')) | {
        'questions': len(lines)}
  except NotMeasured as error:
    return {'value': None, 'interval': [None, None],
            'level': hidden_share.HARMLESS, 'holds': verdict.INCONCLUSIVE,
            'reason': str(error)}
