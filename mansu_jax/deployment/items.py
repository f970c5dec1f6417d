"""Questions of a deployment check, and answers that a run recorded for them."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data.readers import jsonl
from mansu_jax.eval import accuracy
from mansu_jax.stages.prepare import inputs as inputs_lib

_MODEL = 'unlearned'


class Answers(NamedTuple):
  """A model's answers to n questions.

  Attributes:
    choice: [n] int, index of the most likely choice.
    correct: [n] bool.
    margin: [n] float64, log-probability of the right answer less that of the
      best wrong one, in nats.
  """

  choice: np.ndarray
  correct: np.ndarray
  margin: np.ndarray

  @classmethod
  def from_scores(cls, scores: accuracy.Scores) -> Answers:
    """Answers that follow from the scores of all choices."""
    return cls(scores.logprob.argmax(1), scores.correct, scores.margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
  """Questions, and the simulator's recorded answers to them.

  Attributes:
    questions: n questions.
    splits: Split of each question.
    recorded: Answers of the run's unlearned model by precision; empty if the
      questions come without a run.
    chat: Whether prompts use the tokenizer's chat template.
  """

  questions: tuple[questions_lib.Question, ...]
  splits: tuple[str, ...]
  recorded: dict[str, Answers]
  chat: bool = False

  def subsample(self, limit: int) -> Items:
    """Draws at most `limit` questions a split (0: all), spread over facts."""
    index_of = {(s, q.id): i
                for i, (s, q) in enumerate(zip(self.splits, self.questions))}
    by_split: dict[str, list[questions_lib.Question]] = {}
    for split, question in zip(self.splits, self.questions):
      by_split.setdefault(split, []).append(question)
    chosen = np.array([
        index_of[split, q.id] for split, questions in by_split.items()
        for q in inputs_lib.thin(questions, limit, 0)], int)
    return dataclasses.replace(
        self, questions=tuple(self.questions[i] for i in chosen),
        splits=tuple(self.splits[i] for i in chosen),
        recorded={name: Answers(*(x[chosen] for x in answers))
                  for name, answers in self.recorded.items()})


def read_answers(path: pathlib.Path) -> Items:
  """Reads the `answers.jsonl` of a finished run.

  Args:
    path: The file. The run's `record.json` lies beside it.

  Returns:
    The questions with the answers of the run's unlearned model.

  Raises:
    ValueError: The file is missing or malformed, or an earlier version of this
      package wrote it without prompts and choices.
  """
  questions, splits, rows = [], [], []
  for where, record in jsonl.read_records(str(path)):
    if 'prompt' not in record or 'choices' not in record:
      raise ValueError(
          f'{where}: the line lacks the prompt or the choices; wanted the'
          ' answers.jsonl of a run of this version. Repeat the run, or give'
          ' --model and --questions_file.')
    splits.append(jsonl.take_string(where, record, 'split'))
    # The lines do not name the use; far questions may have every reading.
    questions.append(questions_lib.parse(where, record | {'use': 'far'}))
    models = jsonl.take(where, record, 'models', dict, 'an object')
    rows.append((where, models.get(_MODEL) or {}))
  precisions = rows[0][1]
  return Items(
      questions=tuple(questions), splits=tuple(splits),
      chat=_used_chat(path.parent / 'record.json'),
      recorded={name: _parse_answers(name, questions, rows)
                for name in precisions})


def _used_chat(record: pathlib.Path) -> bool:
  """Whether a run asked its questions through the chat template."""
  if not record.is_file():
    return False
  return bool(json.loads(record.read_text())['tokenization'].get('chat'))


def _parse_answers(
    precision: str, questions: Sequence[questions_lib.Question],
    rows: Sequence[tuple[str, dict[str, Any]]]) -> Answers:
  """Answers at one precision, checked line by line."""
  choice, correct, margin = [], [], []
  for question, (where, found) in zip(questions, rows):
    entry = jsonl.take(where, found, precision, dict, 'an object')
    name = jsonl.take_string(where, entry, 'choice')
    if name not in question.choices:
      raise ValueError(
          f'{where}: {precision} has the choice {name!r}; wanted one of'
          f' {list(question.choices)}. The file was changed; repeat the run.')
    choice.append(question.choices.index(name))
    correct.append(jsonl.take(where, entry, 'correct', bool, 'true or false'))
    margin.append(jsonl.take(where, entry, 'margin', float, 'a number'))
  return Answers(
      np.array(choice), np.array(correct), np.array(margin, np.float64))


def read_questions(path: str, *, chat: bool = False) -> Items:
  """Reads a question file; the `use` of a question is its split.

  Args:
    path: JSONL file, in the format of docs/data.md.
    chat: Whether prompts use the tokenizer's chat template.

  Returns:
    The questions, without recorded answers.

  Raises:
    ValueError: See `questions.read_questions`.
  """
  questions = questions_lib.read_questions(path)
  return Items(
      questions=tuple(questions), splits=tuple(q.use for q in questions),
      recorded={}, chat=chat)
