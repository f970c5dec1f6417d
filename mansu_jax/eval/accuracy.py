"""Multiple-choice accuracy by summed log-probability of the continuation.

A prompt is computed once for all its choices, and many questions share a row
(see `packing`). Scores equal those of one sequence a choice, as
lm-evaluation-harness computes them, to float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from mansu_jax import types
from mansu_jax.data import batching
from mansu_jax.data import packing
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.eval import scoring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """Questions packed for scoring; made once, scored for every model.

  Attributes:
    questions: n questions.
    batches: their packed prompts and choices.
    positions: per question [m], segment positions that predict something.
    targets: per question [m, K], token ids that are scored there.
    cells: per question and choice, the (row, column) of `targets` whose sum
      is the choice's log-probability.
  """

  questions: tuple[questions_lib.Question, ...]
  batches: list[packing.PackedBatch]
  positions: list[np.ndarray]
  targets: list[np.ndarray]
  cells: list[list[tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """What a model answers to n questions, in the order of the task.

  Attributes:
    logprob: [n, C] float64, summed log-probability (nats) of each choice;
      -inf where a question has fewer than C choices.
    answer_logprob: [n] float64, that of the right answer.
    correct: [n] bool, the right answer scores above every other choice.
    correct_norm: [n] bool, the same with scores divided by the number of
      characters of the choice, as lm-evaluation-harness's `acc_norm`.
    margin: [n] float64, right answer's score minus the best wrong one's.
  """

  logprob: np.ndarray
  answer_logprob: np.ndarray
  correct: np.ndarray
  correct_norm: np.ndarray
  margin: np.ndarray

  def take(self, index: Sequence[int] | np.ndarray | slice) -> Scores:
    """The scores of some of the questions, for example of one split."""
    return Scores(**{
        field.name: getattr(self, field.name)[index]
        for field in dataclasses.fields(self)})


def build_task(
    questions: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, *, chat: bool = False,
    row_length: int = packing.ROW_LENGTH,
    token_budget: int = packing.TOKEN_BUDGET,
    max_length: int | None = None) -> Task:
  """Encodes and packs questions.

  Pass the questions of all splits at once: they then share rows and shapes.

  Args:
    questions: n questions.
    tokenizer: see `tokenization`.
    chat: whether to ask in the tokenizer's chat form.
    row_length: see `packing.pack_segments`.
    token_budget: see `packing.pack_segments`.
    max_length: longest position that the model knows, or None.

  Raises:
    ValueError: a prompt or choice has no tokens, or is too long.
  """
  encoded = tokenization.encode_questions(questions, tokenizer, chat=chat)
  packed = [batching.pack_choices(e) for e in encoded]
  batches = packing.pack_segments(
      [p.segment for p in packed], row_length=row_length,
      token_budget=token_budget, max_length=max_length)
  width = max((len(p.targets) for p in packed), default=1)
  plans = [_plan(p, width) for p in packed]
  positions, targets, cells = map(list, zip(*plans)) if plans else ([], [], [])
  return Task(
      questions=tuple(questions), batches=batches, positions=positions,
      targets=targets, cells=cells)


def _plan(packed: batching.PackedQuestion, width: int):
  """Places [m], their targets [m, width], and each choice's cells in them."""
  positions = sorted({p for path in packed.predictors for p in path})
  row = {position: i for i, position in enumerate(positions)}
  targets = np.zeros((len(positions), width), np.int32)
  cells = []
  for column, (path, ids) in enumerate(zip(packed.predictors, packed.targets)):
    rows = np.array([row[position] for position in path])
    targets[rows, column] = ids
    cells.append((rows, np.full(len(rows), column)))
  return np.array(positions), targets, cells


def score(
    scorer: scoring.Scorer, params: types.Params, task: Task,
    kept: scoring.Kept | None = None) -> Scores:
  """Scores every choice of every question.

  Args:
    scorer: compiled functions, shared by all models of one shape.
    params: the model.
    task: packed questions.
    kept: see `scoring.Scorer.logprobs`.

  Raises:
    ValueError: a score is not finite, so the model is broken.
  """
  found = scorer.logprobs(
      params, task.batches, task.positions, task.targets, kept)
  most = max((len(cells) for cells in task.cells), default=0)
  logprob = np.full((len(task.questions), most), -np.inf)
  for i, (table, cells) in enumerate(zip(found, task.cells)):
    logprob[i, :len(cells)] = [
        table[cell].sum(dtype=np.float64) for cell in cells]
  _check_finite(task, logprob)
  return judge(task.questions, logprob)


def _check_finite(task: Task, logprob: np.ndarray) -> None:
  for question, row in zip(task.questions, logprob):
    if not np.isfinite(row[:len(question.choices)]).all():
      raise ValueError(
          f'The model scores the choices of question {question.id!r} as'
          f' {row[:len(question.choices)]}; wanted finite log-probabilities.'
          ' Its weights or activations overflow: look at the training loss, or'
          ' lower the learning rate.')


def judge(
    questions: Sequence[questions_lib.Question],
    logprob: np.ndarray) -> Scores:
  """Compares the right answer's score with the best wrong one.

  Args:
    questions: n questions.
    logprob: [n, C] scores in nats of their choices, as in `Scores`.
  """
  n = len(questions)
  answer = np.array([q.answer_index for q in questions], int)
  characters = np.ones_like(logprob)
  for i, question in enumerate(questions):
    characters[i, :len(question.choices)] = [
        len(c.strip()) for c in question.choices]
  margin = _margin(logprob, answer)
  return Scores(
      logprob=logprob, answer_logprob=logprob[np.arange(n), answer],
      correct=margin > 0, margin=margin,
      correct_norm=_margin(logprob / characters, answer) > 0)


def _margin(scores: np.ndarray, answer: np.ndarray) -> np.ndarray:
  """Right score [n] minus the largest of the others; ties give zero."""
  rows = np.arange(len(scores))
  others = scores.copy()
  others[rows, answer] = -np.inf
  return scores[rows, answer] - others.max(axis=1, initial=-np.inf)
