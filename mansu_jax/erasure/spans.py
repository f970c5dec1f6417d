"""Questions with the same phrasing of other facts, as rows of tokens.

The span of a prompt runs from its subject's first token to the second-last
token. A state of another model, or of another fact, can take the place of a
prompt's own state at each of its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from mansu_jax import types
from mansu_jax.data import packing
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.erasure import suppression
from mansu_jax.runtime import sharding

_ROWS = 32  # Prompts in a batch.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
  """n questions, each with the same phrasing of K other facts.

  Attributes:
    prompts: token ids of the prompts.
    others: for each question, the prompts of K other facts, of equal length.
    starts: position of the subject's first token, [n].
    asked: first tokens of the choices.
    facts: fact of each question, [n].
  """

  prompts: list[list[int]]
  others: list[list[list[int]]]
  starts: np.ndarray
  asked: suppression.Asked
  facts: np.ndarray

  def __len__(self) -> int:
    return len(self.prompts)


class Rows(NamedTuple):
  """Prompts, a row each, padded at the end."""

  tokens: np.ndarray  # [B, W] int32
  lengths: np.ndarray  # [B] int32
  starts: np.ndarray  # [B] int32, start of the span
  choices: np.ndarray  # [B, C] int32


class Batch(NamedTuple):
  """Rows that run together."""

  rows: Rows
  others: tuple[np.ndarray, ...]  # K of [B, W] int32, other facts' prompts
  members: np.ndarray  # [b] int, the question of each row; b <= B


class Phrasings:
  """Finds, among some questions, those that have partners.

  A question is usable if its choices differ in their first tokens and if other
  facts are asked in the same phrasing, with prompts of equal token length.

  Attributes:
    usable: the usable questions.
  """

  def __init__(
      self, questions: Sequence[questions_lib.Question],
      tokenizer: types.Tokenizer, *, chat: bool = False):
    """Encodes the questions and finds their partners."""
    self._encoded = tokenization.encode_questions(
        questions, tokenizer, chat=chat)
    self._index = {q.id: i for i, q in enumerate(questions)}
    self._partners = {}
    for i, found in pairs_lib.find_partners(questions, self._encoded).items():
      start = min(self._first_difference(i, j) for j in found)
      if start < len(self._encoded[i].prompt) - 1 and self._distinct(i):
        self._partners[i] = found, start
    self.usable = [questions[i] for i in self._partners]

  def _distinct(self, i: int) -> bool:
    first = [ids[0] for ids in self._encoded[i].choices]
    return len(set(first)) == len(first)

  def _first_difference(self, i: int, j: int) -> int:
    pair = zip(self._encoded[i].prompt, self._encoded[j].prompt)
    return next(t for t, (a, b) in enumerate(pair) if a != b)

  def take(
      self, chosen: Sequence[questions_lib.Question], *, others: int,
      rng: np.random.Generator) -> Questions:
    """Builds the chosen questions with random other facts.

    Args:
      chosen: some of `usable`.
      others: number K of other facts; a question with fewer partners repeats
        some.
      rng: generator of the choice.
    """
    at = [self._index[q.id] for q in chosen]
    first = [[ids[0] for ids in self._encoded[i].choices] for i in at]
    width = max(map(len, first))
    padded = [row + row[:1] * (width - len(row)) for row in first]
    prompt = lambda i: list(self._encoded[i].prompt)
    draw = lambda i: np.resize(rng.permutation(self._partners[i][0]), others)
    return Questions(
        prompts=[prompt(i) for i in at],
        others=[[prompt(j) for j in draw(i)] for i in at],
        starts=np.array([self._partners[i][1] for i in at], np.int32),
        asked=suppression.Asked(
            np.array(padded, np.int32),
            np.array([q.answer_index for q in chosen], np.int32),
            np.array([len(row) for row in first], np.int32)),
        facts=np.array([q.fact for q in chosen]))


def batches_of(questions: Questions) -> list[Batch]:
  """Sorts the questions by length and forms batches of few widths."""
  order = np.argsort([len(p) for p in questions.prompts], kind='stable')
  rows = sharding.round_up_rows(_ROWS)
  return [_batch(questions, order[i:i + rows], rows)
          for i in range(0, len(order), rows)]


def _batch(questions: Questions, members: np.ndarray, rows: int) -> Batch:
  lengths = [len(questions.prompts[i]) for i in members]
  width = packing.round_up(max(lengths))

  def write(prompts):
    out = np.zeros((rows, width), np.int32)
    for row, ids in zip(out, prompts):
      row[:len(ids)] = ids
    return out

  def pad(values, fill):
    out = np.full((rows, *np.shape(values)[1:]), fill, np.int32)
    out[:len(members)] = values
    return out

  count = len(questions.others[0])
  return Batch(
      Rows(write(questions.prompts[i] for i in members), pad(lengths, 2),
           pad(questions.starts[members], 0),
           pad(questions.asked.choices[members], 0)),
      tuple(write(questions.others[i][k] for i in members)
            for k in range(count)), members)
