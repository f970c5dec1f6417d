"""What every engine is asked: questions, and the sequences that score them.

A choice is scored by the sequence of its prompt and all its tokens but the
last, plainly, as a deployed model would be asked: no packing and no masks, so
that nothing of the simulator's evaluation is shared but the token ids. Choices
with the same sequence, such as all of one token, share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import jsonl
from mansu_jax.eval import accuracy
from mansu_jax.stages.prepare import inputs as inputs_lib

Question = questions_lib.Question

_MODEL = 'unlearned'


class Answers(NamedTuple):
  """What a model answers to n questions.

  Attributes:
    choice: [n] int, place of the likeliest choice.
    correct: [n] bool.
    margin: [n] float64, right answer's log-probability less the best wrong
      one's, in nats.
  """

  choice: np.ndarray
  correct: np.ndarray
  margin: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
  """Questions, and what the simulator answered in a run.

  Attributes:
    questions: n questions.
    splits: the split of each.
    recorded: `{precision: Answers}` of the run's unlearned model; empty
      without a run.
    chat: whether they are asked in the tokenizer's chat form.
  """

  questions: tuple[Question, ...]
  splits: tuple[str, ...]
  recorded: dict[str, Answers]
  chat: bool = False

  def thin(self, limit: int) -> Items:
    """At most `limit` questions a split (0: all), spread over its facts."""
    positions = {(s, q.id): i
              for i, (s, q) in enumerate(zip(self.splits, self.questions))}
    by_split: dict[str, list[Question]] = {}
    for split, question in zip(self.splits, self.questions):
      by_split.setdefault(split, []).append(question)
    kept = np.array([
        positions[split, q.id] for split, questions in by_split.items()
        for q in inputs_lib.thin(questions, limit, 0)], int)
    return dataclasses.replace(
        self, questions=tuple(self.questions[i] for i in kept),
        splits=tuple(self.splits[i] for i in kept),
        recorded={name: Answers(*(x[kept] for x in answers))
                  for name, answers in self.recorded.items()})


def read_answers(path: pathlib.Path) -> Items:
  """Reads the `answers.jsonl` of a finished run, beside its `record.json`.

  Raises:
    ValueError: the file is missing or malformed, or of a version of this
      package that left out prompts and choices.
  """
  questions, splits, rows = [], [], []
  for where, record in jsonl.read_records(str(path)):
    if 'prompt' not in record or 'choices' not in record:
      raise ValueError(
          f'{where}: lacks the prompt or the choices; wanted the answers.jsonl'
          ' of a run of this version. Repeat the run, or give --model and'
          ' --questions_file.')
    splits.append(jsonl.take_string(where, record, 'split'))
    questions.append(questions_lib.parse(where, record | {'use': 'train'}))
    models = jsonl.take(where, record, 'models', dict, 'an object')
    rows.append((where, models.get(_MODEL) or {}))
  precisions = rows[0][1]
  return Items(
      questions=tuple(questions), splits=tuple(splits),
      chat=_is_chat(path.parent / 'record.json'),
      recorded={name: _recorded(name, questions, rows) for name in precisions})


def _is_chat(record: pathlib.Path) -> bool:
  """Whether a run asked in chat form."""
  if not record.is_file():
    return False
  return bool(json.loads(record.read_text())['tokenization'].get('chat'))


def _recorded(
    precision: str, questions: Sequence[Question],
    rows: Sequence[tuple[str, dict[str, Any]]]) -> Answers:
  choice, correct, margin = [], [], []
  for question, (where, found) in zip(questions, rows):
    entry = jsonl.take(where, found, precision, dict, 'an object')
    name = jsonl.take_string(where, entry, 'choice')
    if name not in question.choices:
      raise ValueError(
          f'{where}: the choice {name!r} of {precision} is none of'
          f' {list(question.choices)}; wanted one of these. The file was'
          ' changed; repeat the run.')
    choice.append(question.choices.index(name))
    correct.append(jsonl.take(where, entry, 'correct', bool, 'true or false'))
    margin.append(jsonl.take(where, entry, 'margin', float, 'a number'))
  return Answers(
      np.array(choice), np.array(correct), np.array(margin, np.float64))


def read_questions(path: str, *, chat: bool = False) -> Items:
  """Reads questions of the contract's schema; their `use` is their split.

  Raises:
    ValueError: as `questions.read_questions`.
  """
  questions = questions_lib.read_questions(path)
  return Items(questions=tuple(questions),
               splits=tuple(q.use for q in questions), recorded={},
               chat=chat)


class Request(NamedTuple):
  """A sequence, and the next tokens that are scored in it.

  Attributes:
    tokens: ids.
    positions: [m] positions in the sequence that predict.
    targets: [m] token ids scored there.
  """

  tokens: tuple[int, ...]
  positions: np.ndarray
  targets: np.ndarray


# Requests -> for each the log-probabilities [m] (nats) of its targets.
Engine = Callable[[Sequence[Request]], list[np.ndarray]]


class Plan:
  """The requests that score all choices of all questions."""

  def __init__(
      self, questions: Sequence[Question], tokenizer: Any, *,
      chat: bool = False):
    """Encodes the questions.

    Raises:
      ValueError: as `tokenization.encode_questions`.
    """
    self._questions = questions
    self.encoded = tokenization.encode_questions(
        questions, tokenizer, chat=chat)
    wanted: dict[tuple[int, ...], dict[tuple[int, int], int]] = {}
    self._cells = [  # Per question and choice: sequence, and cells in it.
        [self._place(e.prompt, choice, wanted) for choice in e.choices]
        for e in self.encoded]
    order = {tokens: i for i, tokens in enumerate(wanted)}
    self._cells = [[(order[tokens], cells) for tokens, cells in choices]
                   for choices in self._cells]
    self.requests = [
        Request(tokens, *np.array(list(cells)).T)
        for tokens, cells in wanted.items()]

  @staticmethod
  def _place(prompt, choice, wanted):
    """Notes what scores one choice; returns the sequence and its cells."""
    tokens = (*prompt, *choice[:-1])
    found = wanted.setdefault(tokens, {})
    start = len(prompt) - 1
    cells = [found.setdefault((start + i, target), len(found))
             for i, target in enumerate(choice)]
    return tokens, cells

  def score(self, engine: Engine) -> accuracy.Scores:
    """Asks an engine for all log-probabilities.

    Raises:
      ValueError: a score is not finite.
    """
    table = engine(self.requests)
    most = max(map(len, self._cells))
    logprob = np.full((len(self._cells), most), -np.inf)
    for i, choices in enumerate(self._cells):
      logprob[i, :len(choices)] = [
          np.sum(table[request][cells], dtype=np.float64)
          for request, cells in choices]
      if not np.isfinite(logprob[i, :len(choices)]).all():
        raise ValueError(
            f'The choices of question {self._questions[i].id!r} score'
            f' {logprob[i]}; wanted finite log-probabilities. The quantized'
            ' model overflows.')
    return accuracy.judge(self._questions, logprob)


def of_scores(scores: accuracy.Scores) -> Answers:
  """The answers that scores amount to."""
  return Answers(scores.logprob.argmax(1), scores.correct, scores.margin)


def batches(
    requests: Sequence[Request], most: int, sequences: int
) -> list[list[int]]:
  """Places of requests in batches: longest first, few lengths in each.

  Args:
    requests: what is asked.
    most: tokens a batch when padded, unless one request has more.
    sequences: requests a batch.
  """
  out, room = [], 0
  order = np.argsort([-len(r.tokens) for r in requests], kind='stable')
  for i in order.tolist():
    if len(out[-1] if out else ()) >= room:
      out.append([])
      room = min(sequences, max(1, most // len(requests[i].tokens)))
    out[-1].append(i)
  return out
