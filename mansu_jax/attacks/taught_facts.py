"""Divides facts into those that an attack teaches again and those it asks.

Facts that share an answer stay on one side, so that no taught answer is the
answer of an asked fact. Questions about asked facts do not offer taught answers
either: training raises or lowers these for other reasons than knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib

Question = questions_lib.Question


def choose(answers: Iterable[tuple[str, str]], seed: int) -> set[str]:
  """Draws the facts that an attack teaches again.

  Args:
    answers: Fact and answer of each question; facts and answers may repeat.
    seed: Seed of the draw.

  Returns:
    At most half of the facts; exactly half, rounded down, if no two facts
    share an answer.

  Example:
    >>> taught = choose([('a', 'x'), ('b', 'y'), ('c', 'x'), ('d', 'z')], 0)
    >>> len(taught), ('a' in taught) == ('c' in taught)
    (2, True)
  """
  groups = _groups(answers)
  most, taught = sum(map(len, groups)) // 2, set()
  for i in np.random.default_rng(seed).permutation(len(groups)):
    if len(taught) + len(groups[i]) <= most:
      taught |= groups[i]
  return taught


def _groups(answers: Iterable[tuple[str, str]]) -> list[set[str]]:
  """Facts grouped by shared answers, ordered by their first names."""
  group_of: dict[str, set[str]] = {}
  owner: dict[str, str] = {}  # Answer -> a fact that has it.
  for fact, answer in answers:
    mine = group_of.setdefault(fact, {fact})
    other = group_of[owner.setdefault(splits_lib.plain(answer), fact)]
    if other is not mine:
      mine |= other
      group_of.update(dict.fromkeys(other, mine))
  return sorted({id(g): g for g in group_of.values()}.values(), key=min)


def choose_of(questions: Sequence[Question], seed: int) -> set[str]:
  """As `choose`, for the facts and answers of questions."""
  return choose(((q.fact, q.answer) for q in questions), seed)


class Untaught(NamedTuple):
  """Questions about facts that are not taught."""

  questions: list[Question]
  narrowed: frozenset[str]  # Ids of questions that lost a wrong choice.
  dropped: int  # Questions left out because no wrong choice remained.


def untaught(
    asked: Sequence[Question], taught: Sequence[Question]) -> Untaught:
  """Questions about other facts, without taught answers among their choices.

  Args:
    asked: Questions about taught and other facts.
    taught: Questions that the attack teaches.
  """
  facts = {q.fact for q in taught}
  answers = {splits_lib.plain(q.answer) for q in taught}
  kept, narrowed, dropped = [], set(), 0
  for question in asked:
    if question.fact in facts:
      continue
    choices = tuple(
        c for c in question.choices if splits_lib.plain(c) not in answers)
    if question.answer not in choices or len(choices) < 2:
      dropped += 1
      continue
    if len(choices) < len(question.choices):
      narrowed.add(question.id)
    kept.append(dataclasses.replace(question, choices=choices))
  return Untaught(kept, frozenset(narrowed), dropped)
