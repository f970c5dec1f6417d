"""Multiple-choice accuracy by summed log-probability of each choice.

The model computes a prompt once for all choices of all questions that share it,
and many prompts share a row (see `data.packing`). Up to float rounding, scores
equal those of lm-evaluation-harness, which runs one sequence per choice.

Example (`apply` and `unembed` of any model; see `scoring`):

    unembed = functools.partial(decoder.unembed, model.config)
    scorer = scoring.Scorer(apply, unembed)
    task = accuracy.build_task(questions, model.tokenizer)
    scores = accuracy.score(scorer, model.params, task)
    print(scores.correct.mean())
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
  """Questions packed for scoring; built once for all models.

  Attributes:
    questions: n questions.
    segments: [n] int, the segment of each question. Questions with the same
      prompt share one.
    batches: Packed prompts and choices, one segment per distinct prompt.
    positions: For each segment, the positions [m] that predict a choice token.
    targets: For each segment, the token ids [m, K] to score at each position.
    cells: For each question and choice, the (rows, columns) of its segment's
      `targets` whose log-probabilities sum to the choice's.
  """

  questions: tuple[questions_lib.Question, ...]
  segments: np.ndarray
  batches: list[packing.PackedBatch]
  positions: list[np.ndarray]
  targets: list[np.ndarray]
  cells: list[list[tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """Scores of one model on n questions, in the order of the task.

  Attributes:
    logprob: [n, C] float64, summed log-probability (nats) of each choice; -inf
      beyond a question's choices.
    answer_logprob: [n] float64, `logprob` of the right answer.
    correct: [n] bool, whether the right answer scores above all other choices.
    correct_norm: [n] bool, `correct` for scores divided by the characters of
      the choice, like `acc_norm` of lm-evaluation-harness.
    margin: [n] float64, score of the right answer minus that of the best wrong
      choice.
  """

  logprob: np.ndarray
  answer_logprob: np.ndarray
  correct: np.ndarray
  correct_norm: np.ndarray
  margin: np.ndarray

  def take(self, index: Sequence[int] | np.ndarray | slice) -> Scores:
    """Selects questions, for example those of one split."""
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

  Pass the questions of all splits at once, so that they share rows and shapes.

  Args:
    questions: n questions.
    tokenizer: A transformers tokenizer.
    chat: Whether to apply the chat template.
    row_length: See `packing.pack_segments`.
    token_budget: See `packing.pack_segments`.
    max_length: Longest position that the model supports, or None.

  Raises:
    ValueError: a prompt or choice has no tokens, or is too long.
  """
  encoded = tokenization.encode_questions(questions, tokenizer, chat=chat)
  prompts, segments, columns = _share_prompts(encoded)
  packed = [batching.pack_choices(e) for e in prompts]
  batches = packing.pack_segments(
      [p.segment for p in packed], row_length=row_length,
      token_budget=token_budget, max_length=max_length)
  width = max((len(p.targets) for p in packed), default=1)
  plans = [_plan(p, width) for p in packed]
  positions, targets, cells = map(list, zip(*plans)) if plans else ([], [], [])
  return Task(
      questions=tuple(questions), segments=segments, batches=batches,
      positions=positions, targets=targets,
      cells=[[cells[segment][c] for c in chosen]
             for segment, chosen in zip(segments, columns)])


def _share_prompts(
    encoded: Sequence[tokenization.Encoded]
) -> tuple[list[tokenization.Encoded], np.ndarray, list[list[int]]]:
  """Merges questions that have the same prompt.

  Args:
    encoded: n questions.

  Returns:
    Each distinct prompt with the choices of all its questions; the number of
    each question's prompt, [n] int; and the places of each question's choices
    among the prompt's.
  """
  numbers: dict[tuple[int, ...], int] = {}
  places: list[dict[tuple[int, ...], int]] = []
  segments, columns = [], []
  for prompt, choices in encoded:
    number = numbers.setdefault(tuple(prompt), len(numbers))
    if number == len(places):
      places.append({})
    known = places[number]
    segments.append(number)
    columns.append([
        known.setdefault(tuple(choice), len(known)) for choice in choices])
  merged = [tokenization.Encoded(list(prompt), [list(c) for c in known])
            for prompt, known in zip(numbers, places)]
  return merged, np.array(segments, int), columns


def _plan(packed: batching.PackedQuestion, width: int):
  """Positions [m], their targets [m, width], and the cells of each choice."""
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
    cache: scoring.HiddenCache | None = None) -> Scores:
  """Scores all choices of all questions.

  Args:
    scorer: Compiled functions, shared by all models of one shape.
    params: Params of the model.
    task: Packed questions.
    cache: See `scoring.Scorer.logprobs`.

  Raises:
    ValueError: a score is not finite.
  """
  found = scorer.logprobs(
      params, task.batches, task.positions, task.targets, cache)
  most = max((len(cells) for cells in task.cells), default=0)
  logprob = np.full((len(task.questions), most), -np.inf)
  for i, (segment, cells) in enumerate(zip(task.segments, task.cells)):
    logprob[i, :len(cells)] = [
        found[segment][cell].sum(dtype=np.float64) for cell in cells]
  _check_finite(task, logprob)
  return judge(task.questions, logprob)


def _check_finite(task: Task, logprob: np.ndarray) -> None:
  for question, row in zip(task.questions, logprob):
    if not np.isfinite(row[:len(question.choices)]).all():
      raise ValueError(
          f'The model scores the choices of question {question.id!r} as'
          f' {row[:len(question.choices)]}; wanted finite log-probabilities.'
          ' Weights or activations overflow. Check the training loss, or lower'
          ' the learning rate.')


def judge(
    questions: Sequence[questions_lib.Question],
    logprob: np.ndarray) -> Scores:
  """Compares the right answer's score with that of the best wrong choice.

  Args:
    questions: n questions.
    logprob: [n, C] scores of their choices in nats, as in `Scores`.

  Example:
    >>> question = questions_lib.Question(
    ...     id='q', fact='f', relation='r', prompt='1 + 1 =', answer='2',
    ...     choices=('2', '3'), use='near')
    >>> scores = judge([question], np.array([[-1.5, -2.0]]))
    >>> scores.correct.tolist(), scores.margin.tolist()
    ([True], [0.5])
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
  """Score of the right answer minus the best other score, [n]."""
  rows = np.arange(len(scores))
  others = scores.copy()
  others[rows, answer] = -np.inf
  return scores[rows, answer] - others.max(axis=1, initial=-np.inf)
