"""Answers of both models at every precision, by split and by reading.

A reading is a way to ask for a forgotten fact. `choice` and `choice_unseen` ask
for one of four choices, which training may have seen or has not; `generation`
and `generation_few_shot` let the model write; `reverse` asks for the subject.
`choice_same_subject` offers choices that belong to the same subject; it decides
nothing, because a model that knows nothing of the fact may know these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.statistics import bootstrap
from mansu_jax.statistics import forgetting
from mansu_jax.statistics import intervals

Measured = dict[tuple[str, str], evaluation.Measured]
DECIDING = ('choice', 'choice_unseen', 'generation', 'generation_few_shot',
            'reverse')
READINGS = (*DECIDING, 'choice_same_subject')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
  """One reading's n questions and their answers.

  Attributes:
    questions: n questions.
    correct: `{(model, precision): [n] bool}`.
    ignorance: [n], the probability that an ignorant model answers right.
    options: resamples and seed of the bootstrap.
  """

  questions: Sequence[questions_lib.Question]
  correct: Mapping[tuple[str, str], np.ndarray]
  ignorance: np.ndarray
  options: Mapping[str, int]

  @property
  def facts(self) -> list[str]:
    """Fact of each question."""
    return [q.fact for q in self.questions]

  @property
  def groups(self) -> list[str]:
    """Group of each question in which knowledge is clipped at ignorance.

    Readings that are joined keep groups of their own: avoiding the choices that
    training has seen does not pay for knowledge among others.
    """
    return forgetting.forms_of(
        [f'{q.reading} {q.wording}' for q in self.questions],
        [q.relation for q in self.questions], self.facts)

  def phi(self, precision: str, count: int) -> forgetting.Forgetting:
    """Forgetting at a precision, one of `count` estimates judged together."""
    return forgetting.forgetting(
        self.correct['base', precision], self.correct['unlearned', precision],
        self.ignorance, self.facts, self.groups,
        level_of_all=intervals.bonferroni(count), **self.options)

  def gap(self, precision: str, **options: Any) -> bootstrap.Estimate:
    """Knowledge that a quantizer brings back."""
    right = lambda model: (self.correct[model, precision],
                           self.correct[model, 'fp'])
    (base_q, base), (after_q, after) = right('base'), right('unlearned')
    return forgetting.known_gap(
        base_q, after_q, base, after, self.ignorance, self.facts, self.groups,
        **self.options, **options)

  def joined(self, other: Reading) -> Reading:
    """The questions of two readings together."""
    return Reading(
        questions=[*self.questions, *other.questions],
        correct={key: np.concatenate([found, other.correct[key]])
                 for key, found in self.correct.items()},
        ignorance=np.concatenate([self.ignorance, other.ignorance]),
        options=self.options)


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

  def readings(self, ignorance: np.ndarray) -> dict[str, Reading]:
    """The readings that choose, without those that have no questions.

    Args:
      ignorance: [n], from `ignorance.measure`.
    """
    found = {}
    for name, splits in splits_lib.OF_READING.items():
      rows = self.rows(splits)
      if rows.size:
        found[name] = Reading(
            questions=[self._evaluator.questions[i] for i in rows],
            correct={(model, precision): scored.scores.correct[rows]
                     for (model, precision), scored in self._measured.items()},
            ignorance=ignorance[rows], options=self.options)
    return found
