"""The hidden share of a run, at every precision, with its gates; property S."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.erasure import hidden_share
from mansu_jax.erasure import mover_layer
from mansu_jax.erasure import spans
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import files
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.statistics import verdict

_MOVER_QUESTIONS = 32  # Questions in training phrasings for the mover layer.
OTHERS = 2  # Other facts whose states each question gets.
_LEAST = 8  # Fewer questions say nothing.
_KEPT = 4  # One retain question for so many forget questions.


class NotMeasured(ValueError):
  """The hidden share cannot be measured, with a reason in plain words."""


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
    NotMeasured: there are too few questions.
  """
  if not limit:
    raise NotMeasured('--eval_hidden_questions=0 skips it')
  evaluation = inputs.splits.evaluation
  unseen = splits_lib.OF_READING['choice_unseen']
  asked = [q for split in unseen for q in evaluation.get(split, ())] or [
      q for split in splits_lib.FORGOTTEN for q in evaluation[split]]

  def draw(questions, what, limit, others=OTHERS):
    return _draw(questions, what, tokenizer, limit=limit, others=others,
                 seed=seed, chat=chat)

  forget = draw(asked, 'forget questions (use near or far)', limit)
  train = draw(inputs.splits.forget_train, 'forget questions (use train)',
               min(limit, _MOVER_QUESTIONS), others=1)
  try:
    retain = draw(evaluation['retain'], 'retain questions',
                  max(limit // _KEPT, _LEAST))
  except NotMeasured as error:
    logging.warning('No retained facts test the hidden share: %s', error)
    retain = None
  return Asked(train=train, forget=forget, retain=retain)


def _draw(
    questions: Sequence[questions_lib.Question], what: str,
    tokenizer: types.Tokenizer, *, limit: int, others: int, seed: int,
    chat: bool) -> spans.Questions:
  """Draws questions with partners evenly over facts."""
  rng, found = np.random.default_rng(seed), None
  if questions:
    phrasings = spans.Phrasings(questions, tokenizer, chat=chat)
    chosen = inputs_lib.thin(phrasings.usable, limit, seed)
    if len(chosen) < len(phrasings.usable):
      chosen = phrasings.with_partners(chosen, limit, rng)
    found = phrasings.take(chosen, others=others, rng=rng)
  if found is None or len(found) < _LEAST:
    raise NotMeasured(
        f'{len(found or ())} of {len(questions)} {what} have choices that'
        ' differ in their first tokens and a partner: another fact in the same'
        f' phrasing with as many tokens; wanted at least {_LEAST}')
  return found


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
      return _measure(
          asked, quantize, model, unlearned,
          dict(resamples=options.bootstrap, seed=settings.seed))
    except (NotMeasured, mover_layer.NoLead) as error:
      logging.warning('The hidden share is not measured: %s', error)
      return {'reason': str(error)}

  structure = dict(cache.get_or_compute_json('hidden_share', make))
  lines = structure.pop('lines', [])
  if 'reason' in structure:
    why = f'the hidden share is not measured: {structure["reason"]}'
    return {'structure': structure, 'lines': lines,
            'S': verdict.missing(why, hidden_share.LARGEST)}
  return {'structure': structure, 'lines': lines, 'S': hidden_share.judge(
      structure['hidden_share'], structure['gates'],
      readings=structure['readings'], facts=structure['facts'])}


def write(found: Mapping[str, Any], root: pathlib.Path) -> None:
  """Writes `hidden_share.jsonl`: how often each question is answered.

  A line has its `fact`, and for the `base` and for `unlearned` at each
  precision, by reading, how often it is answered right, and guessed.

  Args:
    found: from `measure`.
    root: folder of the run.
  """
  if found['lines']:
    files.write_text(root / 'hidden_share.jsonl', ''.join(
        json.dumps(line, ensure_ascii=False) + '\n'
        for line in found['lines']))


def _measure(
    asked: Asked, quantize: quantizers.Quantizers, model: loading.LoadedModel,
    unlearned: types.Params, resampling: Mapping[str, int]) -> dict[str, Any]:
  """`structure` of the record, and lines."""
  config, base = model.config, model.params
  mover = mover_layer.find(config, base, asked.train)
  views = quantize.views()
  host = hidden_share.Host(config, base, asked.forget, mover.layer)
  shares = _shares(host, resampling)
  lines = _lines(host, {
      precision: host.answers(view(unlearned), describe=True)
      for precision, view in views.items()})
  gates = {
      'sharp_mover': _sharp(mover),
      'another_fact': _absent(shares, host),
      'noise': _harmless(shares, host.answers(hidden_share.noise_like(
          base, unlearned, seed=resampling['seed'])))}
  if quantize.names:
    gates['base_quantized'] = min(
        ({'precision': name} | _harmless(
            shares, host.answers(quantize(name, base)), forgets=True)
         for name in quantize.names),
        key=lambda gate: (gate['holds'], gate['value']))
  gates['retained'] = _retained(
      config, base, unlearned, asked.retain, mover.layer, resampling)
  return {
      'mover_layer': mover.layer, 'by_layer': mover.removed,
      'readings': [k for k in hidden_share.LEFT if shares.defined(k)],
      'hidden_share': of_lines(lines, **resampling), 'gates': gates,
      'questions': len(asked.forget), 'facts': _count_facts(asked.forget),
      'answered': dict(zip(('base', 'guessed'), map(
          float, host.own[hidden_share.OWN].mean(1)))),
      'lines': lines}


def _lines(
    host: hidden_share.Host, answers: Mapping[str, hidden_share.Answers]
) -> list[dict[str, Any]]:
  """The answers to each question, by model and reading."""
  one = lambda found, i: {name: right[:, i].tolist()
                          for name, right in found.items()}
  return [{'fact': fact, 'base': one(host.own, i),
           'unlearned': {p: one(found, i) for p, found in answers.items()}}
          for i, fact in enumerate(host.questions.facts.tolist())]


def of_lines(
    lines: Sequence[Mapping[str, Any]], *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
  """The record's `hidden_share`, by precision.

  Args:
    lines: lines of `hidden_share.jsonl`.
    resamples: number of bootstrap resamples.
    seed: seed of the resamples.
  """
  columns = lambda rows: {
      name: np.array([row[name] for row in rows]).T for name in rows[0]}
  precisions = list(lines[0]['unlearned'])
  shares = hidden_share.Shares(
      np.array([line['fact'] for line in lines]),
      columns([line['base'] for line in lines]), resamples=resamples, seed=seed,
      precisions=len(precisions))
  return {p: _hidden(shares, columns([line['unlearned'][p] for line in lines]))
          for p in precisions}


def _hidden(
    shares: hidden_share.Shares, answers: hidden_share.Answers
) -> dict[str, Any]:
  """The hidden share at a precision, and what is left."""
  return shares.hidden(answers) | shares.described(answers) | {
      'left': max(shares.left(answers), key=lambda one: one['interval'][1]),
      'answered': {k: float(v[0].mean()) for k, v in answers.items()}}


def _shares(
    host: hidden_share.Host, options: Mapping[str, int]
) -> hidden_share.Shares:
  """Shares of the base's lead over guessing; NotMeasured if it has none."""
  if _count_facts(host.questions) < 2:
    raise NotMeasured(
        f'all {len(host.questions)} questions ask about one fact; intervals'
        ' by fact need at least two')
  shares = hidden_share.Shares(host.questions.facts, host.own, **options)
  if not shares.defined():
    right, guessed = host.own[hidden_share.OWN].mean(1)
    raise NotMeasured(
        f'the base answers {right:.3g} of the questions and {guessed:.3g} in'
        ' prompts about other facts; this lead is not above 0 in every'
        ' resample')
  return shares


def _count_facts(questions: spans.Questions) -> int:
  return int(np.unique(questions.facts).size)


def _sharp(mover: mover_layer.Mover) -> dict[str, Any]:
  """Whether one layer moves the answer."""
  after = [*mover.removed, 0.0][mover.layer + 1]
  return {'value': mover.removed[mover.layer], 'interval': [None, None],
          'level': mover_layer.REMOVED, 'next_layer': after,
          'next_level': mover_layer.KEPT, 'holds': mover.sharp}


def _absent(
    shares: hidden_share.Shares, host: hidden_share.Host) -> dict[str, Any]:
  """The gate on other facts' states at the span, which must end the answers."""
  guessed = host.own[hidden_share.OWN][1]
  value = shares.share({hidden_share.OWN: np.stack([host.replaced, guessed])})
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
    config, base, unlearned, questions: spans.Questions | None, layer: int,
    resampling: Mapping[str, int]) -> dict[str, Any]:
  """The gate on retained facts, with the edited model's states."""
  try:
    if questions is None:
      raise NotMeasured('there are too few retain questions with partners')
    host = hidden_share.Host(config, base, questions, layer)
    shares = _shares(host, resampling)
    return _left(shares, host.answers(unlearned)) | {
        'questions': len(questions)}
  except NotMeasured as error:
    return {'value': None, 'interval': [None, None],
            'level': hidden_share.HARMLESS, 'holds': verdict.INCONCLUSIVE,
            'reason': str(error)}
