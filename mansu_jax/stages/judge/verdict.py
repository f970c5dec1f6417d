"""The record's figures and the four properties F, R, Q and S.

A property passes if its whole interval lies on the right side of its
threshold, fails if it lies on the wrong side, and is inconclusive otherwise.
F, R and Q pass by one-sided 95 % bounds, each of which must hold: for every
reading and precision, for every precision, and for every quantizer. They fail
by a bound of one of them, at the Bonferroni level over all, which corrects for
picking the worst of several. S fails by the hidden share or by an attack, and
passes if both do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from mansu_jax.data import splits as splits_lib
from mansu_jax.eval import perplexity
from mansu_jax.stages.judge import answers as answers_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.statistics import accuracy
from mansu_jax.statistics import forgetting
from mansu_jax.statistics import gaps as gaps_lib
from mansu_jax.statistics import intervals
from mansu_jax.statistics import power
from mansu_jax.statistics import recovery
from mansu_jax.statistics import verdict

FORGOTTEN = splits_lib.FORGOTTEN
DROP = 0.01  # Largest accuracy drop of retain preservation (R).
GAP = 0.01  # Largest share of knowledge that may come back (Q).
_NEEDED = {'choice': 'no questions with the usual choices',
           'choice_unseen': 'no questions with choices that training never saw',
           'generation': 'no generated answers'}
_NEEDED_IF_TRAINED = {'reverse': 'no reverse questions, but training has some'}
_POOLED = 'choice', 'choice_unseen'  # The readings that Q pools.
_NO_QUESTIONS = 'the forget set has no near or far questions'
_NO_LEAD = ('the base answers no better than an ignorant model, so there is'
            ' nothing to forget')
# Largest lead over ignorance of a base that has nothing to forget in a reading.
_NO_KNOWLEDGE = 0.1

Answers = answers_lib.Answers
Measured = answers_lib.Measured
Readings = Mapping[str, answers_lib.Reading]


def accuracies(
    answers: Answers, splits: Sequence[str], precisions: Sequence[str]
) -> dict[str, Any]:
  """`accuracy[split][model][precision]` with `acc_norm` beside it."""
  out = {}
  for split in splits:
    rows = answers.rows([split])
    if not rows.size:
      continue
    out[split] = {model: {} for model in evaluation.MODELS}
    for model in evaluation.MODELS:
      for precision in precisions:
        entry = answers.estimate(
            accuracy.accuracy_with_interval,
            answers.correct(model, precision, rows), rows=rows)
        entry['acc_norm'] = float(answers.correct(
            model, precision, rows, normalised=True).mean())
        out[split][model][precision] = entry
  return out


def by_group(
    answers: Answers, splits: Sequence[str], precisions: Sequence[str],
    group: Callable[[np.ndarray], list[str]]) -> dict[str, Any]:
  """Accuracies by relation or phrasing, without intervals."""
  out: dict[str, Any] = {}
  for split in splits:
    rows = answers.rows([split])
    names = np.array(group(rows))
    for name in dict.fromkeys(names.tolist()):
      chosen = rows[names == name]
      out.setdefault(split, {})[name] = {'n': int(chosen.size)} | {
          model: {p: float(answers.correct(model, p, chosen).mean())
                  for p in precisions}
          for model in evaluation.MODELS}
  return out


def gaps(answers: Answers, schemes: Sequence[str]) -> dict[str, Any]:
  """PTQ gap of the unlearned model, of the base, and their difference."""
  rows = answers.rows(FORGOTTEN)
  out = {'ptq_gap': {}, 'ptq_gap_base': {}, 'ptq_gap_adjusted': {}}
  if not rows.size:
    return out
  right = functools.partial(answers.correct, rows=rows)
  for scheme in schemes:
    pair = [right('unlearned', scheme), right('unlearned', 'fp')]
    base = [right('base', scheme), right('base', 'fp')]
    out['ptq_gap'][scheme] = answers.estimate(
        gaps_lib.quantization_gap, *pair, rows=rows)
    out['ptq_gap'][scheme] |= _detectable(
        answers, pair, rows, out['ptq_gap'][scheme])
    out['ptq_gap_base'][scheme] = answers.estimate(
        gaps_lib.quantization_gap, *base, rows=rows)
    out['ptq_gap_adjusted'][scheme] = answers.estimate(
        gaps_lib.adjusted_gap, *pair, *base, rows=rows)
  return out


def _detectable(answers, pair, rows, gap):
  """The smallest detectable gap, and McNemar's p.

  The gap is the larger of the formula's and the distance from the value to its
  upper bound.
  """
  events = (pair[0] != pair[1]).astype(float)
  items = power.effective_items(events, answers.facts(rows))
  formula = power.smallest_detectable_gap(
      items, max(events.mean(), 1 / events.size))
  return {
      'discordant': float(events.mean()),
      'smallest_detectable': max(formula, gap['upper'] - gap['value']),
      'mcnemar_p': gaps_lib.mcnemar_exact(pair[1], pair[0])}


def perplexities(
    measured: Measured, precisions: Sequence[str]) -> dict[str, Any]:
  """`perplexity[model][precision]` and `perplexity_by_text[kind]`."""
  pooled = {m: {} for m in evaluation.MODELS}
  kinds: dict[str, Any] = {}
  for model in evaluation.MODELS:
    for precision in precisions:
      found = measured.get((model, precision))
      if found is None or not found.texts:
        continue
      texts = found.texts
      pooled[model][precision] = perplexity.pool(texts.values()).perplexity
      for kind, loss in texts.items():
        kinds.setdefault(kind, {m: {} for m in evaluation.MODELS})[model][
            precision] = loss.perplexity
  return {'perplexity': pooled, 'perplexity_by_text': kinds}


def readings_entry(
    readings: Readings, precisions: Sequence[str]) -> dict[str, Any]:
  """`forgetting[reading]`: accuracy by model and precision, and ignorance.

  `ignorance[model][precision]` is how often the model is right without knowing
  the fact, `known[precision]` the share of the base's knowledge that is left,
  and `avoided[precision]` is there where accuracy lies significantly below
  ignorance: then the avoided answer is the right one.
  """
  out = {}
  for name, reading in readings.items():
    entry: dict[str, Any] = {
        model: {p: accuracy.accuracy_with_interval(
            reading.correct[model, p], reading.facts,
            **reading.options).record() for p in precisions}
        for model in evaluation.MODELS}
    entry['ignorance'] = {
        model: {p: float(reading.ignorance[model, p].mean())
                for p in precisions} for model in evaluation.MODELS}
    entry['known'] = {p: reading.known(p).record() for p in precisions}
    avoided = {p: forgetting.avoidance(
        reading.correct['unlearned', p], reading.ignorance['unlearned', p],
        reading.facts, **reading.options).record() for p in precisions}
    entry['avoided'] = {p: found for p, found in avoided.items()
                        if found['upper'] < 0}
    out[name] = entry
  return out


def property_f(
    readings: Readings, precisions: Sequence[str], *, reverse: bool = False
) -> dict[str, Any]:
  """Meaningful forgetting: phi of every reading at every precision.

  It does not pass without usual and unseen choices and generated answers, nor
  without reverse questions if training asks some (`reverse`). A reading in
  which the base shows no knowledge decides nothing. `cannot_pass` has the
  readings and precisions at which even a model without a right answer, that
  guesses as this one does, would not pass: the questions tell too little.
  """
  asked = answers_lib.deciding(readings)
  if not asked:
    return verdict.missing(_NO_QUESTIONS, forgetting.PHI)
  unknown = [name for name, reading in asked.items()
             if reading.lead('fp').upper < _NO_KNOWLEDGE]
  asked = {k: v for k, v in asked.items() if k not in unknown}
  if not asked:
    return verdict.missing(_NO_LEAD, forgetting.PHI)
  count = len(asked) * len(precisions)
  found = {(name, p): reading.phi(p, count)
           for name, reading in asked.items() for p in precisions}
  passed = forgetting.judge(found.values())
  defined = {k: v for k, v in found.items() if np.isfinite(v.value)}
  if not defined:
    return verdict.missing(_NO_LEAD, forgetting.PHI)
  (name, precision), worst = min(
      defined.items(), key=lambda item: item[1].value)
  cannot = [key for key in found if not _can_pass(asked[key[0]], key[1], count)]
  entry = worst.record() | {
      'threshold': forgetting.PHI, 'passed': passed, 'reading': name,
      'precision': precision, 'by_reading': {
          name: {p: found[name, p].record() for p in precisions}
          for name in asked}, 'base_ignorant': unknown,
      'cannot_pass': [list(key) for key in cannot],
      'measure': 'phi = 1 - known / known_0, known clipped at ignorance'}
  needed = _NEEDED | (_NEEDED_IF_TRAINED if reverse else {})
  absent = [
      f'the base leads an ignorant model too little in {key}'
      if key in unknown else f'there are {text}'
      for key, text in needed.items() if key not in asked]
  if passed is True and absent:
    entry |= {'passed': verdict.INCONCLUSIVE, 'reason': ' and '.join(absent)}
  short = [key for key, phi in found.items() if phi.lower < forgetting.PHI]
  if passed == verdict.INCONCLUSIVE and all(key in cannot for key in short):
    entry['reason'] = (
        'the base answers too little to show that it is forgotten, even by a'
        ' model without a right answer: '
        f'{", ".join(f"{name} ({p})" for name, p in short)}')
  return entry


def _can_pass(reading: answers_lib.Reading, precision: str, count: int) -> bool:
  """Whether a model that answers nothing right would pass in a reading."""
  wrong = np.zeros(len(reading.questions), bool)
  silent = dataclasses.replace(reading, correct={
      **reading.correct, ('unlearned', precision): wrong})
  return silent.phi(precision, count).lower >= forgetting.PHI


def property_r(answers: Answers, precisions: Sequence[str]) -> dict[str, Any]:
  """Retain preservation: drop on held-out facts, at each precision.

  Without held-out questions the retained ones can fail it, not pass it.
  """
  splits = {'retain_heldout': answers.rows(['retain_heldout']),
            'retain': answers.rows(['retain'])}
  drops = {name: _drops(answers, rows, precisions)
           for name, rows in splits.items() if rows.size}
  if not drops:
    return verdict.missing('there are no held-out questions', DROP)
  split = next(iter(drops))
  precision, worst = max(
      drops[split].items(), key=lambda item: item[1]['upper'])
  passed = _at_most(drops[split].values(), DROP)
  entry = worst | {
      'threshold': DROP, 'passed': passed, 'split': split,
      'precision': precision, 'by_precision': drops[split],
      'trained': drops.get('retain', {}),
      'measure': 'accuracy drop on held-out facts'}
  if split == 'retain' and passed is True:
    entry |= {'passed': verdict.INCONCLUSIVE, 'reason':
              'there are no held-out questions, only retained ones'}
  return entry


def _drops(
    answers: Answers, rows: np.ndarray, precisions: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """The accuracy drop from the base at each precision."""
  out = {}
  for p in precisions:
    pair = [answers.correct(m, p, rows) for m in evaluation.MODELS]
    out[p] = answers.estimate(gaps_lib.paired_drop, *pair, rows=rows)
    out[p]['interval_of_all'] = answers.estimate(
        functools.partial(gaps_lib.paired_drop, level=intervals.bonferroni(
            len(precisions))), *pair, rows=rows)['interval']
  return out


def _at_most(
    entries: Sequence[Mapping[str, Any]], level: float) -> verdict.Verdict:
  """Whether several quantities are at most a level, judged together."""
  return verdict.all_of(
      verdict.at_most((entry['interval_of_all'][0], entry['upper']), level)
      for entry in entries)


def property_q(
    readings: Readings, schemes: Sequence[str]) -> dict[str, Any]:
  """Quantization permanence: knowledge that a quantizer brings back.

  Knowledge is a share of the base's at the same precision, above ignorance.
  The choice readings are pooled, and the worst quantizer decides. A single
  reading in which a quantizer brings knowledge back fails the property too, and
  a choice reading in which guesses leave too little open keeps it from passing.
  """
  asked = answers_lib.deciding(readings)
  chosen = [asked[k] for k in _POOLED if k in asked]
  if not chosen or not schemes:
    return verdict.missing(_NO_QUESTIONS, GAP)
  pooled = functools.reduce(lambda a, b: a.joined(b), chosen)
  count = len(schemes) * (1 + len(asked))
  level = intervals.bonferroni(count)
  entries = {}
  for scheme in schemes:
    entries[scheme] = pooled.gap(scheme).record() | {
        'interval_of_all': pooled.gap(scheme, level=level).record()['interval'],
        'by_reading': {name: reading.gap(scheme, level=level).record()
                       for name, reading in asked.items()}}
  defined = {k: v for k, v in entries.items() if v['value'] is not None}
  if not defined:
    return verdict.missing(_NO_LEAD, GAP)
  scheme, worst = max(
      defined.items(), key=lambda item: (_recovers(item[1]), item[1]['upper']))
  passed = verdict.all_of(
      False if _recovers(entry) else verdict.at_most(
          (entry['interval_of_all'][0], entry['upper']), GAP)
      for entry in entries.values())
  shut = [name for name, reading in asked.items() if name in _POOLED and any(
      np.mean(reading.ignorance['unlearned', p]) > 1 - recovery.LEAST_OPEN
      for p in ('fp', *schemes))]
  if passed is True and shut:
    worst |= {'reason': (
        f'the model guesses more than {1 - recovery.LEAST_OPEN:g} of the'
        f' answers right in {" and ".join(shut)}, so that little could be seen'
        ' to come back')}
    passed = verdict.INCONCLUSIVE
  return worst | {
      'threshold': GAP, 'passed': passed, 'scheme': scheme,
      'by_scheme': entries,
      'measure': 'known(quantized) - known(fp), one-sided upper 95 % bound'}


def _recovers(entry: Mapping[str, Any]) -> bool:
  """Whether a quantizer significantly brings knowledge back."""
  lows = [entry['interval_of_all'][0], *(
      found['interval'][0] for found in entry['by_reading'].values())]
  return any(low is not None and low > GAP for low in lows)


def property_s(
    hidden: dict[str, Any], attack: dict[str, Any] | None) -> dict[str, Any]:
  """Structural erasure: the hidden share and the attacks, jointly.

  Args:
    hidden: the entry of the hidden share, with `value`, `interval`,
      `threshold`, `passed` and `reason`.
    attack: the `attack_verdict`, with `passed` and `reason`; None without one.
  """
  parts = [hidden, attack or verdict.missing('no attack was run')]
  passed = verdict.all_of(part['passed'] for part in parts)
  reasons = [part['reason'] for part in parts if part.get('reason')]
  return {k: v for k, v in hidden.items() if k != 'reason'} | {
      'passed': passed, 'reasons': reasons}


def overall(properties: dict[str, Any]) -> dict[str, Any]:
  """All four properties jointly."""
  return {'passed': verdict.all_of(p['passed'] for p in properties.values())}
