"""Questions with the same phrasing of other facts, as rows of tokens.

The span of a prompt runs from its subject's first token to the second-last
token. A state of another model, or of another fact, can take the place of a
prompt's own state at each of its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from mansu_jax import types
from mansu_jax.data import packing
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.erasure import suppression
from mansu_jax.runtime import sharding

ROWS = 32  # Prompts in a batch.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
  """n questions in the order of their batches, each with K other facts.

  Attributes:
    prompts: token ids of the prompts.
    batches: the questions of each batch.
    others: K questions of the same batch that ask about other facts in the
      same phrasing, with prompts of equal token length, int [n, K].
    starts: position of the subject's first token, [n].
    asked: first tokens of the choices.
    facts: fact of each question, [n].
  """

  prompts: list[list[int]]
  batches: tuple[slice, ...]
  others: np.ndarray
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
  others: np.ndarray  # [K, B] int32, rows of other facts; padding: row 0
  members: slice  # The questions of the first rows


class Phrasings:
  """Finds, among some questions, those that have partners.

  A question is usable if its choices differ in their first tokens, and other
  such questions ask about other facts in the same phrasing, with prompts of
  equal token length.

  Attributes:
    usable: the usable questions.
  """

  def __init__(
      self, questions: Sequence[questions_lib.Question],
      tokenizer: types.Tokenizer, *, chat: bool = False):
    """Encodes the questions and finds their partners."""
    encoded = tokenization.encode_questions(questions, tokenizer, chat=chat)
    first = [[ids[0] for ids in e.choices] for e in encoded]
    kept = [i for i, row in enumerate(first) if len(set(row)) == len(row)]
    self._questions = [questions[i] for i in kept]
    self._encoded = [encoded[i] for i in kept]
    self._index = {q.id: i for i, q in enumerate(self._questions)}
    self._partners, self._starts = {}, {}
    for i, found in pairs_lib.find_partners(
        self._questions, self._encoded).items():
      start = min(self._first_difference(i, j) for j in found)
      if start < len(self._encoded[i].prompt) - 1:
        self._partners[i], self._starts[i] = set(found), start
    self.usable = [self._questions[i] for i in self._partners]

  def _first_difference(self, i: int, j: int) -> int:
    pair = zip(self._encoded[i].prompt, self._encoded[j].prompt)
    return next(t for t, (a, b) in enumerate(pair) if a != b)

  def with_partners(
      self, chosen: Sequence[questions_lib.Question], limit: int,
      rng: np.random.Generator) -> list[questions_lib.Question]:
    """Some of `usable`, each with a random partner.

    Args:
      chosen: some of `usable`, at least `limit` if there are as many.
      limit: largest number of questions, partners included.
      rng: generator of order and partners.
    """
    out: dict[int, None] = {}
    for q in rng.permutation(np.array(chosen, object)):
      i = self._index[q.id]
      if i not in out and len(out) + 2 <= limit:
        out[i] = out[int(rng.choice(sorted(self._partners[i])))] = None
    return [self._questions[i] for i in out]

  def take(
      self, chosen: Sequence[questions_lib.Question], *, others: int,
      rng: np.random.Generator) -> Questions:
    """Builds the chosen questions, with random other facts.

    Args:
      chosen: some of the questions. Those that have no partner in their batch
        are left out.
      others: number K of other facts; a question with fewer partners in its
        batch repeats some.
      rng: generator of the other facts.
    """
    batches = self._in_batches([self._index[q.id] for q in chosen])
    partners = {i: found for batch in batches for i, found in batch.items()}
    at, ends = list(partners), np.cumsum([0, *map(len, batches)]).tolist()
    place = {i: k for k, i in enumerate(at)}
    first = [[ids[0] for ids in self._encoded[i].choices] for i in at]
    width = max(map(len, first), default=0)
    padded = [row + row[:1] * (width - len(row)) for row in first]
    draw = lambda found: np.resize(
        rng.permutation([place[j] for j in found]), others)
    return Questions(
        prompts=[list(self._encoded[i].prompt) for i in at],
        batches=tuple(map(slice, ends[:-1], ends[1:])),
        others=np.array([draw(found) for found in partners.values()], int),
        starts=np.array([self._starts[i] for i in at], np.int32),
        asked=suppression.Asked(
            np.array(padded, np.int32),
            np.array([self._questions[i].answer_index for i in at], np.int32),
            np.array([len(row) for row in first], np.int32)),
        facts=np.array([self._questions[i].fact for i in at]))

  def _in_batches(self, chosen: Sequence[int]) -> list[dict[int, list[int]]]:
    """Forms batches in which questions have partners.

    Returns:
      For each batch, the partners of each of its questions.
    """
    # Partners share a length and, nearly always, the first of their group.
    group = lambda i: (len(self._encoded[i].prompt),
                       min(self._partners[i] | {i}))
    at = sorted((i for i in chosen if i in self._partners),
                key=lambda i: (group(i), i))
    groups = [list(g) for _, g in itertools.groupby(at, group)]
    found = [self._within(batch) for batch in _fill(
        groups, sharding.round_up_rows(ROWS))]
    return [batch for batch in found if batch]

  def _within(self, batch: Sequence[int]) -> dict[int, list[int]]:
    """The partners of each question in a batch; drops those without."""
    while True:
      found = {i: [j for j in batch if j in self._partners[i]] for i in batch}
      if all(found.values()):
        return found
      batch = [i for i in batch if found[i]]


def _fill(groups: Sequence[list[int]], rows: int) -> list[list[int]]:
  """Fills batches with groups, and leaves no question of a group alone."""
  batches: list[list[int]] = [[]]
  for group in groups:
    while group:
      space = rows - len(batches[-1])
      fit = min(space, len(group))
      if len(group) - fit == 1:
        fit -= 1
      if fit < min(2, len(group)):
        batches.append([])
        continue
      batches[-1] += group[:fit]
      group = group[fit:]
  return batches


def batches_of(questions: Questions) -> list[Batch]:
  """The batches, each as wide as its longest prompt needs."""
  rows = sharding.round_up_rows(ROWS)
  return [_batch(questions, members, rows) for members in questions.batches]


def _batch(questions: Questions, members: slice, rows: int) -> Batch:
  prompts = questions.prompts[members]
  lengths = [len(ids) for ids in prompts]
  tokens = np.zeros((rows, packing.round_up(max(lengths))), np.int32)
  for row, ids in zip(tokens, prompts):
    row[:len(ids)] = ids

  def pad(values, fill):
    out = np.full((rows, *np.shape(values)[1:]), fill, np.int32)
    out[:len(prompts)] = values
    return out

  return Batch(
      Rows(tokens, pad(lengths, 2), pad(questions.starts[members], 0),
           pad(questions.asked.choices[members], 0)),
      pad(questions.others[members] - members.start, 0).T, members)
