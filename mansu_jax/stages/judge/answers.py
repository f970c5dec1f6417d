"""Answers of both models at every precision, by split and by reading.

A reading is a way to ask for a forgotten fact. `choice` and `choice_unseen` ask
for one of four choices, which training may have seen or has not; `generation`
and `generation_few_shot` let the model write; `reverse` asks for the subject.
`choice_same_subject` offers choices that belong to the same subject; it decides
nothing, because a model that knows nothing of the fact may know these.

Four readings decide: `deciding` joins the two kinds of generation, because the
base writes too few plain answers to show that all are forgotten. `reverse` does
only where training asks for the subject, too (`judged`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.statistics import bootstrap
from mansu_jax.statistics import forgetting
from mansu_jax.statistics import gaps
from mansu_jax.statistics import intervals

Measured = dict[tuple[str, str], evaluation.Measured]
READINGS = ('choice', 'choice_unseen', 'generation', 'generation_few_shot',
            'reverse', 'choice_same_subject')
_DECIDING = {
    'choice': ['choice'], 'choice_unseen': ['choice_unseen'],
    'generation': ['generation', 'generation_few_shot'], 'reverse': ['reverse']}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
  """One reading's n questions and their answers.

  Attributes:
    questions: n questions.
    correct: `{(model, precision): [n] bool}`.
    ignorance: `{(model, precision): [n]}`, how often the model answers each
      question right without knowing its fact.
    options: resamples and seed of the bootstrap.
  """

  questions: Sequence[questions_lib.Question]
  correct: Mapping[tuple[str, str], np.ndarray]
  ignorance: Mapping[tuple[str, str], np.ndarray]
  options: Mapping[str, int]

  @property
  def facts(self) -> list[str]:
    """Fact of each question."""
    return [q.fact for q in self.questions]

  @property
  def groups(self) -> list[str]:
    """Group of each question in which knowledge is clipped at ignorance.

    Choices of both kinds keep groups of their own where they are joined:
    avoiding those that training has seen does not pay for knowledge among
    others.
    """
    return forgetting.forms_of(
        [f'{q.reading} {q.wording}' for q in self.questions],
        [q.relation for q in self.questions], self.facts)

  def levels(self, *keys: tuple[str, str]) -> np.ndarray:
    """Ignorance of k models, [n, k]."""
    return np.stack([self.ignorance[key] for key in keys], 1)

  def known(self, precision: str) -> bootstrap.Estimate:
    """The share of the base's knowledge that is left at a precision."""
    return self._judge(forgetting.known_share, precision)

  def phi(self, precision: str, count: int) -> forgetting.Forgetting:
    """Forgetting at a precision, one of `count` estimates judged together."""
    return self._judge(forgetting.forgetting, precision,
                       level_of_all=intervals.bonferroni(count))

  def _judge(
      self, statistic: Callable[..., Any], precision: str, **options: Any
  ) -> Any:
    models = [(model, precision) for model in evaluation.MODELS]
    return statistic(
        *(self.correct[key] for key in models), self.levels(*models),
        self.facts, self.groups, **options, **self.options)

  def lead(self, precision: str) -> bootstrap.Estimate:
    """The base's accuracy above ignorance at a precision."""
    key = 'base', precision
    return gaps.mean_difference(
        self.correct[key] - self.ignorance[key], self.facts, largest=1.0,
        **self.options)

  def gap(self, precision: str, **options: Any) -> bootstrap.Estimate:
    """Knowledge that a quantizer brings back."""
    keys = [(model, p) for p in (precision, 'fp')
            for model in evaluation.MODELS]
    return forgetting.known_gap(
        *(self.correct[key] for key in keys), self.levels(*keys), self.facts,
        self.groups, **self.options, **options)

  def about(self, facts: Collection[str]) -> Reading:
    """The questions about some facts."""
    rows = [i for i, q in enumerate(self.questions) if q.fact in facts]
    of = lambda found: {key: x[rows] for key, x in found.items()}
    return Reading(
        questions=[self.questions[i] for i in rows], correct=of(self.correct),
        ignorance=of(self.ignorance), options=self.options)

  def joined(self, other: Reading) -> Reading:
    """The questions of two readings together."""
    both = lambda mine, others: {
        key: np.concatenate([found, others[key]])
        for key, found in mine.items()}
    return Reading(
        questions=[*self.questions, *other.questions],
        correct=both(self.correct, other.correct),
        ignorance=both(self.ignorance, other.ignorance), options=self.options)


def judged(
    readings: Mapping[str, Reading], reversed_facts: Collection[str]
) -> dict[str, Reading]:
  """The readings, `reverse` only of facts that training asks for in reverse.

  Args:
    readings: all of them.
    reversed_facts: facts of the forget set with a reverse training question.
  """
  out = dict(readings)
  if 'reverse' in out:
    out['reverse'] = out['reverse'].about(reversed_facts)
    if not out['reverse'].questions:
      del out['reverse']
  return out


def deciding(readings: Mapping[str, Reading]) -> dict[str, Reading]:
  """The readings that decide, of those that have questions."""
  out = {}
  for name, parts in _DECIDING.items():
    found = [readings[part] for part in parts if part in readings]
    if found:
      out[name] = functools.reduce(lambda a, b: a.joined(b), found)
  return out


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
    """Indices of the questions of some splits; absent ones have none."""
    every = np.arange(len(self._evaluator.questions))
    return np.concatenate([
        every[self._evaluator.slices.get(s, slice(0))] for s in splits])

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
    """Phrasing of each question."""
    return [self._evaluator.questions[i].form for i in rows]

  def estimate(self, fn: Callable[..., Any], *columns, rows):
    """A statistic with its bootstrap by fact, as a record entry."""
    return fn(*columns, self.facts(rows), **self.options).record()

  def readings(self) -> dict[str, Reading]:
    """The readings that choose, without those that have no questions."""
    found, measured = {}, self._measured
    for name, splits in splits_lib.OF_READING.items():
      rows = self.rows(splits)
      if rows.size:
        found[name] = Reading(
            questions=[self._evaluator.questions[i] for i in rows],
            correct={k: of.scores.correct[rows] for k, of in measured.items()},
            ignorance={k: of.ignorance[rows] for k, of in measured.items()},
            options=self.options)
    return found
