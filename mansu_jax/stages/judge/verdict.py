"""The record's figures and the four properties F, R, Q and S.

A property passes if its whole interval lies on the right side of its
threshold, fails if it lies on the wrong side, and is inconclusive otherwise.
R and Q pass by the one-sided upper 95 % bound; every property fails by the
two-sided interval. Q requires every quantizer to pass. A quantizer fails Q by
a Bonferroni interval over all quantizers, which corrects for picking the worst
of several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any

import numpy as np

from mansu_jax.data import splits as splits_lib
from mansu_jax.eval import perplexity
from mansu_jax.stages.judge import evaluation
from mansu_jax.statistics import accuracy
from mansu_jax.statistics import gaps as gaps_lib
from mansu_jax.statistics import intervals
from mansu_jax.statistics import power
from mansu_jax.statistics import verdict

FORGOTTEN, KEPT = splits_lib.FORGOTTEN, splits_lib.KEPT
PHI = 0.9  # Least phi of meaningful forgetting (F).
_FORM_FACTS = 20  # Facts that a phrasing needs to be judged by itself.
DROP = 0.01  # Largest accuracy drop of retain preservation (R).
GAP = 0.01  # Largest PTQ gap of quantization permanence (Q).

Measured = dict[tuple[str, str], evaluation.Measured]


class Answers:
  """Correct answers and facts of splits, by model and precision.

  Attributes:
    options: resamples and seed of the bootstrap.
  """

  def __init__(
      self, evaluator: evaluation.Evaluator, measured: Measured, *,
      resamples: int, seed: int):
    self._evaluator, self._measured = evaluator, measured
    self.options = dict(resamples=resamples, seed=seed)

  def rows(self, splits: Sequence[str]) -> np.ndarray:
    """Indices of the questions of some splits."""
    return np.concatenate([
        np.arange(len(self._evaluator.questions))[self._evaluator.slices[s]]
        for s in splits])

  def correct(
      self, model: str, precision: str, rows: np.ndarray, *,
      normalised: bool = False) -> np.ndarray:
    """Whether each question is answered correctly."""
    scores = self._measured[model, precision].scores
    return (scores.correct_norm if normalised else scores.correct)[rows]

  def facts(self, rows: np.ndarray) -> list[str]:
    """Fact of each question."""
    return [self._evaluator.questions[i].fact for i in rows]

  def relations(self, rows: np.ndarray) -> list[str]:
    """Relation of each question."""
    return [self._evaluator.questions[i].relation for i in rows]

  def forms(self, rows: np.ndarray) -> list[str]:
    """Phrasing of each question: the last part of its id."""
    return [self._evaluator.questions[i].id.rsplit('/', 1)[-1] for i in rows]

  def chance(self, rows: np.ndarray) -> np.ndarray:
    """Chance accuracy of each question."""
    return np.array([self._evaluator.questions[i].chance for i in rows])

  def estimate(self, fn: Callable[..., Any], *columns, rows):
    """A statistic with its bootstrap by fact, as a record entry."""
    return fn(*columns, self.facts(rows), **self.options).record()


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
    out['ptq_gap'][scheme]['interval_of_all'] = answers.estimate(
        functools.partial(
            gaps_lib.quantization_gap,
            level=intervals.bonferroni(len(schemes))),
        *pair, rows=rows)['interval']
    out['ptq_gap_base'][scheme] = answers.estimate(
        gaps_lib.quantization_gap, *base, rows=rows)
    out['ptq_gap_adjusted'][scheme] = answers.estimate(
        gaps_lib.adjusted_gap, *pair, *base, rows=rows)
  return out


def _detectable(answers, pair, rows, gap):
  """The smallest detectable gap, and McNemar's p.

  The gap is the larger of the formula's and the distance from the value to its
  upper bound, which decides the property.
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


def property_f(answers: Answers, precisions: Sequence[str]) -> dict[str, Any]:
  """Meaningful forgetting: phi, in full precision, pooled and by phrasing."""
  rows = answers.rows(FORGOTTEN)
  if not rows.size:
    return verdict.missing(
        'the forget set has no near or far questions', PHI)
  entries = {p: answers.estimate(
      accuracy.forgetting, answers.correct('base', p, rows),
      answers.correct('unlearned', p, rows), answers.chance(rows), rows=rows)
             for p in precisions}
  fp = entries['fp']
  passed = verdict.at_least(fp['interval'], PHI)
  worst = _worst_form(answers, rows, precisions)
  if worst is not None and worst['interval'][1] < PHI:
    passed = False
  return fp | {'threshold': PHI, 'passed': passed, 'by_precision': entries,
               'worst_form': worst,
               'measure': 'phi = (acc_0 - acc_u) / (acc_0 - chance)'}


def _worst_form(
    answers: Answers, rows: np.ndarray, precisions: Sequence[str]
) -> dict[str, Any] | None:
  """The phrasing with the lowest upper bound of phi, in full precision."""
  forms = np.array(answers.forms(rows))
  worst = accuracy.worst_forgetting(
      answers.correct('base', 'fp', rows),
      answers.correct('unlearned', 'fp', rows), answers.chance(rows),
      answers.facts(rows), forms, least_facts=_FORM_FACTS, **answers.options)
  if worst is None:
    return None
  form, phi = worst
  asked = rows[forms == form]
  return phi.record() | {'form': form, 'accuracy': {
      p: float(answers.correct('unlearned', p, asked).mean())
      for p in precisions}}


def property_r(answers: Answers, precisions: Sequence[str]) -> dict[str, Any]:
  """Retain preservation: accuracy drop from the base at each precision."""
  rows = answers.rows(KEPT)
  if not rows.size:
    return verdict.missing(
        'there are no retain or held-out questions', DROP)
  entries = {p: answers.estimate(
      gaps_lib.paired_drop, answers.correct('base', p, rows),
      answers.correct('unlearned', p, rows), rows=rows) for p in precisions}
  fp = entries['fp']
  passed = verdict.at_most((fp['interval'][0], fp['upper']), DROP)
  return fp | {'threshold': DROP, 'passed': passed, 'by_precision': entries,
               'measure': 'accuracy drop, retain and retain_heldout'}


def property_q(gap_entries: dict[str, Any]) -> dict[str, Any]:
  """Quantization permanence: the worst scheme decides."""
  if not gap_entries['ptq_gap']:
    return verdict.missing(
        'the forget set has no near or far questions', GAP)
  # A significant recovery is worse than an uncertain one.
  recovers = lambda entry: entry['interval_of_all'][0] > GAP
  badness = lambda item: (recovers(item[1]), item[1]['upper'])
  worst = max(gap_entries['ptq_gap'].items(), key=badness)
  entry = worst[1]
  passed = verdict.at_most(
      (entry['interval_of_all'][0], entry['upper']), GAP)
  return entry | {
      'threshold': GAP, 'passed': passed, 'scheme': worst[0],
      'measure': 'acc(quantized) - acc(fp), one-sided upper 95 % bound'}


def overall(properties: dict[str, Any]) -> dict[str, Any]:
  """All four properties jointly."""
  return {'passed': verdict.all_of(p['passed'] for p in properties.values())}
