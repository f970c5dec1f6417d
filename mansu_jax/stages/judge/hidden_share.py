"""The hidden share of a run, at every precision, with its gates; property S."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
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
    `structure` and `S`. A structure that is not measured holds a `reason`, and
    S is then inconclusive.
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

  structure = cache.get_or_compute_json('hidden_share', make)
  if 'reason' in structure:
    why = f'the hidden share is not measured: {structure["reason"]}'
    return {'structure': structure,
            'S': verdict.missing(why, hidden_share.LARGEST)}
  return {'structure': structure, 'S': hidden_share.judge(
      structure['hidden_share'], structure['gates'])}


def _measure(
    asked: Asked, quantize: quantizers.Quantizers, model: loading.LoadedModel,
    unlearned: types.Params, resampling: Mapping[str, int]) -> dict[str, Any]:
  """`structure` of the record."""
  config, base = model.config, model.params
  mover = mover_layer.find(config, base, asked.train)
  views = quantize.views()
  host = hidden_share.Host(config, base, asked.forget, mover.layer)
  resampling_of_all = dict(
      resampling, tests=len(views) * len(hidden_share.JUDGED))
  ignorant = _shares(host, host.ignorance, **resampling)
  shares = _shares(host, host.ignorance, host.others, **resampling_of_all)
  found = {}
  for precision, view in views.items():
    found[precision] = _hidden(shares, host.answers(view(unlearned)))
  harmless = lambda params: _harmless(shares, host.answers(params))
  gates = {
      'sharp_mover': _sharp(mover),
      'another_fact': _absent(ignorant, host.others),
      'noise': harmless(hidden_share.noise_like(
          base, unlearned, seed=resampling['seed']))}
  if quantize.names:
    gates['base_quantized'] = harmless(quantize(quantize.names[0], base))
  gates['retained'] = _retained(
      config, base, unlearned, asked.retain, mover.layer, resampling)
  return {
      'mover_layer': mover.layer, 'by_layer': mover.removed,
      'hidden_share': found, 'gates': gates,
      'questions': len(asked.forget), 'facts': _count_facts(asked.forget),
      'answered': {'base': float(host.own.mean()),
                   'ignorant': float(host.ignorance.mean())}}


def _hidden(
    shares: hidden_share.Shares, answers: hidden_share.Answers
) -> dict[str, Any]:
  """The hidden share at a precision, and what is left."""
  hidden = shares.judged(answers, answers['own'])
  worst = max(hidden.values(), key=lambda one: one['interval_of_all'][0])
  left = max(
      shares.judged(answers).values(), key=lambda one: one['interval'][1])
  return worst | shares.described(answers) | {
      'left': {k: left[k] for k in ('reading', 'value', 'interval')},
      'own': shares.share(answers['own']),
      'answered': {k: float(v.mean()) for k, v in answers.items()}}


def _shares(
    host: hidden_share.Host, ignorance: np.ndarray,
    floors: hidden_share.Answers | None = None, *, resamples: int, seed: int,
    tests: int = 1) -> hidden_share.Shares:
  """Shares of the base's lead over ignorance; NotMeasured if it has none."""
  shares = hidden_share.Shares(
      host.questions.facts, host.own, ignorance, floors,
      resamples=resamples, seed=seed, tests=tests)
  if _count_facts(host.questions) < 2:
    raise NotMeasured(
        f'all {len(host.questions)} questions ask about one fact; intervals'
        ' by fact need at least two')
  if not shares.defined:
    raise NotMeasured(
        f'the base answers {host.own.mean():.3g} of the questions and'
        f' {ignorance.mean():.3g} with the states of other facts; this'
        ' lead is not above 0 in every resample')
  return shares


def _count_facts(questions: spans.Questions) -> int:
  return int(np.unique(questions.facts).size)


def _sharp(mover: mover_layer.Mover) -> dict[str, Any]:
  """Whether one layer moves the answer."""
  after = [*mover.removed, 0.0][mover.layer + 1]
  return {'value': mover.removed[mover.layer], 'interval': [None, None],
          'level': mover_layer.REMOVED, 'next_layer': after,
          'next_level': mover_layer.KEPT, 'holds': mover.sharp}


def _gate(
    shares: hidden_share.Shares, answers: hidden_share.Answers
) -> dict[str, Any]:
  """The higher share of the readings that are judged, for a gate."""
  found = max(shares.judged(answers).values(), key=lambda one: one['value'])
  return {k: found[k] for k in ('reading', 'value', 'interval')} | (
      shares.described(answers))


def _absent(
    shares: hidden_share.Shares, answers: hidden_share.Answers
) -> dict[str, Any]:
  """The gate on states of other facts, which must not have the answers."""
  found, level = _gate(shares, answers), hidden_share.LARGEST
  return found | {'level': level, 'holds': found['value'] <= level}


def _left(
    shares: hidden_share.Shares, answers: hidden_share.Answers
) -> dict[str, Any]:
  """The gate on params whose change must leave the answers."""
  found, level = _gate(shares, answers), hidden_share.HARMLESS
  return found | {'level': level, 'holds': found['value'] >= level}


def _harmless(
    shares: hidden_share.Shares, answers: hidden_share.Answers
) -> dict[str, Any]:
  """The gate on params whose change must leave the answers and hide none."""
  found, most = _left(shares, answers), hidden_share.LARGEST
  hidden = found['value'] - max(shares.share(answers['own']), 0)
  return found | {'hidden': hidden, 'hidden_level': most,
                  'holds': found['holds'] and hidden <= most}


def _retained(
    config, base, unlearned, questions: spans.Questions | None, layer: int,
    resampling: Mapping[str, int]) -> dict[str, Any]:
  """The gate on retained facts, with the edited model's states.

  Other relations may move their answers in other layers, so ignorance is what
  the base answers in the whole prompts of other facts.
  """
  try:
    if questions is None:
      raise NotMeasured('there are too few retain questions with partners')
    host = hidden_share.Host(config, base, questions, layer)
    shares = _shares(host, host.elsewhere, **resampling)
    return _left(shares, host.answers(unlearned)) | {
        'questions': len(questions)}
  except NotMeasured as error:
    return {'value': None, 'interval': [None, None],
            'level': hidden_share.HARMLESS, 'holds': verdict.INCONCLUSIVE,
            'reason': str(error)}
