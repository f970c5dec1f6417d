"""How often a model that is ignorant of a fact answers its question right.

Guessing among four choices is right in a quarter of cases only if the choices
are equally likely. A model prefers some answers to others whatever the subject,
so ignorance is measured, for each model at each precision: the model answers
the prompt of another fact, in the same words, with the choices of the question.
Two other facts are asked for each question, one under attack. A fact whose own
answer is among the choices is passed over, because a model would know that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization

OTHERS = 2  # Other facts that are asked for each question.
_READINGS = ('choice', 'choice_unseen', 'reverse')


def probes(
    questions: Sequence[questions_lib.Question], count: int = OTHERS
) -> tuple[list[questions_lib.Question], np.ndarray]:
  """Questions with the prompts of other facts.

  The other facts of a fact come in an order that depends on their names only,
  so that its questions ask the same ones where they can, and share prompts.

  Args:
    questions: n questions.
    count: largest number of probes of each question.

  Returns:
    m probes, and the index of the question that each belongs to, [m] int.
  """
  groups: dict[tuple[str, ...], list[questions_lib.Question]] = {}
  key = lambda q: (q.relation, q.reading, q.form)
  for question in questions:
    groups.setdefault(key(question), []).append(question)
  found, owners = [], []
  for i, question in enumerate(questions):
    for other in _others(question, groups[key(question)])[:count]:
      found.append(dataclasses.replace(
          question, id=f'{question.id}/as/{other.fact}', prompt=other.prompt))
      owners.append(i)
  return found, np.array(owners, int)


def readable_probes(
    questions: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, *, chat: bool, max_length: int,
    count: int = OTHERS
) -> tuple[list[questions_lib.Question], np.ndarray]:
  """The `probes` that fit the model; the others are left out.

  Each question fits by itself, but not always after a longer prompt.

  Args:
    questions: n questions.
    tokenizer: A transformers tokenizer.
    chat: Whether to apply the chat template.
    max_length: Most tokens that the model reads.
    count: Largest number of probes of each question.
  """
  found, owners = probes(questions, count)
  encoded = tokenization.encode_questions(found, tokenizer, chat=chat)
  fits = np.array([one.length <= max_length for one in encoded], bool)
  return [q for q, fit in zip(found, fits) if fit], owners[fits]


def _others(
    question: questions_lib.Question,
    group: Sequence[questions_lib.Question]) -> list[questions_lib.Question]:
  """Questions about other facts whose answers are not among the choices."""
  shown = {splits_lib.plain(choice) for choice in question.choices}
  rank = lambda q: hashlib.sha256(
      f'{question.fact}|{q.fact}'.encode()).hexdigest()
  return sorted(
      (q for q in group if q.fact != question.fact
       and splits_lib.plain(q.answer) not in shown), key=rank)


def levels(
    questions: Sequence[questions_lib.Question], owners: np.ndarray,
    correct: np.ndarray) -> np.ndarray:
  """The share of right answers of each question's probes, [n].

  A question without probes gets its chance, 1 / choices.

  Args:
    questions: n questions.
    owners: [m] int, from `probes`.
    correct: [m] bool, whether each probe's answer is right.
  """
  asked = np.bincount(owners, minlength=len(questions))
  right = np.bincount(owners, correct, minlength=len(questions))
  chance = np.array([q.chance for q in questions])
  return np.where(asked > 0, right / np.maximum(asked, 1), chance)


def rows(slices: Mapping[str, slice], count: int) -> np.ndarray:
  """Indices of the questions that the readings of forgetting ask.

  Args:
    slices: Questions of each split.
    count: Number of all questions.
  """
  every = np.arange(count)
  return np.concatenate([
      every[slices.get(split, slice(0))]
      for reading in _READINGS for split in splits_lib.OF_READING[reading]])
