"""Divides facts into those that an attack teaches again and those it asks.

Facts that share an answer stay on one side, so that no taught answer is the
answer of an asked fact. Questions about asked facts do not offer taught answers
either: training raises or lowers these for other reasons than knowledge. An
attack may also show taught facts in the prompt (`shown`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

from mansu_jax.attacks import plans
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.eval import recall

Question = questions_lib.Question

_ROUNDING = 1e-6  # Facts: 0.29 of 100 are 29, and 28.999... in floating point.


def choose(
    answers: Iterable[tuple[str, str]], seed: int, share: float = plans.HALF
) -> set[str]:
  """Draws the facts that an attack teaches again.

  Args:
    answers: Fact and answer of each question; facts and answers may repeat.
    seed: Seed of the draw.
    share: Largest share of the facts.

  Returns:
    At most this share of the facts; exactly that, rounded down, if no two facts
    share an answer.

  Example:
    >>> taught = choose([('a', 'x'), ('b', 'y'), ('c', 'x'), ('d', 'z')], 0)
    >>> len(taught), ('a' in taught) == ('c' in taught)
    (2, True)
  """
  groups = _groups(answers)
  most = math.floor(sum(map(len, groups)) * share + _ROUNDING)
  taught: set[str] = set()
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


def choose_of(
    questions: Sequence[Question], seed: int, share: float = plans.HALF
) -> set[str]:
  """As `choose`, for the facts and answers of questions."""
  return choose(((q.fact, q.answer) for q in questions), seed, share)


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


def shown(
    questions: Sequence[Question], taught: Sequence[Question], count: int,
    seed: int) -> list[Question]:
  """The questions after `count` solved ones about taught facts.

  These have different answers, and are of the question's relation or, if that
  has too few, of any. The seed orders them.

  Args:
    questions: n questions.
    taught: Questions about taught facts.
    count: Solved questions before each prompt, at least 0.
    seed: Seed of the order.

  Returns:
    n questions; fewer than `count` are shown where no more are taught.
  """
  order = np.random.default_rng(seed).permutation(len(taught))
  ordered = [taught[i] for i in order]
  found: dict[str, str] = {}
  for relation in {q.relation for q in questions}:
    first: dict[str, Question] = {}  # By answer.
    for q in sorted(ordered, key=lambda q: q.relation != relation):
      first.setdefault(splits_lib.plain(q.answer), q)
    found[relation] = ''.join(map(recall.solved, [*first.values()][:count]))
  return [dataclasses.replace(q, prompt=found[q.relation] + q.prompt)
          for q in questions]
