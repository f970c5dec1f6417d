"""Clean and corrupted prompts of equal token length, for attribution.

A pair asks the same thing in the same words about two facts, so that only the
subject's tokens differ between its prompts. Where the facts are all about one
entity, the second subject is a stand-in, taken from other questions.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple, TypeVar

from absl import logging
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import subjects as subjects_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import jsonl

_T = TypeVar('_T')
_TEXT_FIELDS = ('clean', 'corrupt', 'answer', 'corrupt_answer')
_ID_FIELDS = ('clean_ids', 'corrupt_ids', 'answer_id', 'corrupt_answer_id')
_FACT = 'fact'
_SHOWN = 20  # Pairs of unequal prompts that a message names.


class NoPairs(ValueError):
  """The questions make no pair, or a file holds none."""


@dataclasses.dataclass(frozen=True)
class AttributionPair:
  """A clean and a corrupted prompt.

  Attributes:
    clean_ids: [T] token ids of the clean prompt.
    corrupt_ids: [T] token ids of the corrupted prompt.
    answer_id: first token of the clean prompt's answer.
    corrupt_answer_id: first token of the corrupted prompt's answer.
    fact: what pairs are grouped by: the clean prompt's fact.
  """

  clean_ids: tuple[int, ...]
  corrupt_ids: tuple[int, ...]
  answer_id: int
  corrupt_answer_id: int
  fact: str


class FromFile(NamedTuple):
  """What a file of pairs holds."""

  pairs: list[AttributionPair]
  skipped: int  # Left out, for prompts of unequal token length.
  as_ids: int  # Given as token ids, which no form changes; of all.


@dataclasses.dataclass(frozen=True)
class _Candidate:
  """A train question with its prompt's ids and its answer's first token."""

  question: questions_lib.Question
  ids: tuple[int, ...]
  answer_id: int

  @property
  def template(self) -> str:
    """What follows the last '/' of the id; '' where there is none."""
    head, slash, tail = self.question.id.rpartition('/')
    return tail if head and slash else ''

  @property
  def group(self) -> tuple[str, str, int]:
    """Members of one group may be paired."""
    return self.question.relation, self.template, len(self.ids)


def build_pairs(
    questions: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, max_pairs: int, seed: int,
    *, others: Sequence[questions_lib.Question] = (), chat: bool = False
) -> list[AttributionPair]:
  """Pairs each train question with the same phrasing of another fact.

  The other fact has the same relation and template (what follows the last '/'
  of the id, for example `train_3`), a prompt of equal token length and an
  answer of another first token. Where ids name no template, the partner is
  among those whose prompt agrees in most places.

  Where fewer than two facts have such partners, as where all are about one
  entity, the corrupted prompt is the clean one about the subject of one of
  `others` that has as many tokens, of the same relation if possible, and its
  answer one of the question's wrong choices.

  Args:
    questions: of any use; only `train` ones are paired.
    tokenizer: see `tokenization`.
    max_pairs: most pairs to return.
    seed: of the choice of partners and of phrasings.
    others: questions whose subjects may stand in.
    chat: whether prompts take the tokenizer's chat form.

  Returns:
    Pairs in rounds: each fact gives one before any gives a second, and rounds
    turn through the templates, so that every prefix is spread evenly.

  Raises:
    NoPairs: no question has a partner.
    ValueError: `max_pairs` is not positive.
  """
  if max_pairs < 1:
    raise ValueError(
        f'max_pairs is {max_pairs}; wanted 1 or more. Ask for some pairs.')
  rng = np.random.default_rng(seed)
  candidates = _candidates(questions, tokenizer, chat)
  partners = _find_partners(candidates)
  if len({candidates[i].question.fact for i in partners}) < 2 and others:
    swapped = _swap_subjects(
        candidates, others, tokenizer, max_pairs, rng, chat)
    if swapped:
      return swapped
  if not partners:
    raise NoPairs(
        f'None of the {len(candidates)} train questions has a partner: another'
        ' fact of the same relation and phrasing, with a prompt of equal token'
        ' length and an answer that starts with another token; nor has a retain'
        ' fact a subject of as many tokens to stand in. Add facts of the same'
        ' relation to the set, or give pairs as a file (--attribution_pairs_file).')
  used: dict[int, int] = {}
  pairs = []
  for i in _in_rounds(candidates, sorted(partners), rng)[:max_pairs]:
    j = _least_used(partners[i], used, rng)
    pairs.append(_pair(candidates[i], candidates[j]))
  return pairs


def _candidates(
    questions: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, chat: bool) -> list[_Candidate]:
  train = [q for q in questions if q.use == 'train']
  encoded = tokenization.encode_questions(train, tokenizer, chat=chat)
  return [
      _Candidate(q, tuple(e.prompt), e.choices[q.answer_index][0])
      for q, e in zip(train, encoded)]


def _find_partners(candidates: Sequence[_Candidate]) -> dict[int, list[int]]:
  """Per candidate that has any, the indices of those it may be paired with."""
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
  """Pairs of a prompt and the same prompt about another's subject."""
  questions = [c.question for c in candidates]
  own = subjects_lib.of_questions(questions)
  relations = {q.relation for q in questions}
  found = subjects_lib.of_questions(others)
  kin = {s for q, s in zip(others, found) if q.relation in relations}
  stand_ins = sorted(
      {s for s in found if s is not None and s not in own},
      key=lambda s: (s not in kin, s))
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
        [s.join(parts) for s in stand_ins], tokenizer, chat=chat)
    fits = [s for s, ids in zip(stand_ins, encoded)
            if len(ids) == len(clean.ids)]
    fits = [s for s in fits if s in kin] or fits
    if not fits:
      continue
    chosen = _least_used(fits, used, rng)
    pairs.append(AttributionPair(
        clean_ids=clean.ids,
        corrupt_ids=tuple(encoded[stand_ins.index(chosen)]),
        answer_id=clean.answer_id,
        corrupt_answer_id=int(rng.choice(wrong_ids)),
        fact=clean.question.fact))
    if len(pairs) == max_pairs:
      break
  return pairs


def _most_alike(
    candidate: _Candidate, candidates: Sequence[_Candidate],
    found: list[int]) -> list[int]:
  alike = lambda j: sum(
      a == b for a, b in zip(candidate.ids, candidates[j].ids))
  most = max(map(alike, found))
  return [j for j in found if alike(j) == most]


def _in_rounds(
    candidates: Sequence[_Candidate], paired: Sequence[int],
    rng: np.random.Generator) -> list[int]:
  """Orders candidates so that facts, and templates, take turns."""
  by_fact: dict[str, list[int]] = {}
  for i in paired:
    by_fact.setdefault(candidates[i].question.fact, []).append(i)
  facts = list(by_fact)
  turn = []
  for place, fact in enumerate(rng.permutation(len(facts)).tolist()):
    own = sorted(by_fact[facts[fact]], key=lambda i: candidates[i].template)
    shift = place % len(own)
    for round_, i in enumerate(own[shift:] + own[:shift]):
      turn.append((round_, place, i))
  return [i for _, _, i in sorted(turn)]


def _least_used(
    partners: list[_T], used: dict[_T, int], rng: np.random.Generator) -> _T:
  fewest = min(used.get(j, 0) for j in partners)
  free = [j for j in partners if used.get(j, 0) == fewest]
  chosen = free[rng.integers(len(free))]
  used[chosen] = fewest + 1
  return chosen


def _pair(clean: _Candidate, corrupt: _Candidate) -> AttributionPair:
  return AttributionPair(
      clean_ids=clean.ids, corrupt_ids=corrupt.ids, answer_id=clean.answer_id,
      corrupt_answer_id=corrupt.answer_id, fact=clean.question.fact)


def read_pairs(
    path: str, tokenizer: tokenization.Tokenizer | None = None, *,
    chat: bool = False, skip_unequal: bool = False) -> FromFile:
  """Reads pairs given as text or as token ids, one JSON object a line.

  Fields are `clean`, `corrupt`, `answer`, `corrupt_answer` (text) or
  `clean_ids`, `corrupt_ids`, `answer_id`, `corrupt_answer_id`; an optional
  `fact` groups pairs, which else are each a fact of their own. Other fields are
  ignored, as the contract lets them be added; a warning names the first.

  Args:
    path: a file, or `shipped:NAME`.
    tokenizer: needed for pairs given as text; its vocabulary size, where it
      tells one, bounds the ids.
    chat: whether prompts given as text take the tokenizer's chat form.
    skip_unequal: whether pairs whose prompts differ in token length are left
      out.

  Raises:
    NoPairs: all of them are left out.
    ValueError: the file is missing or malformed, prompts do not differ, or both
      answers start with the same token, with file and line; or prompts differ
      in token length, with all lines.
  """
  pairs, warned, unequal, as_ids = [], False, [], 0
  for where, record in jsonl.read_records(path):
    whole = lambda fields, record=record: record.keys() >= set(fields)
    by_id = whole(_ID_FIELDS) or not whole(_TEXT_FIELDS) and any(
        field in record for field in _ID_FIELDS)
    warned = warned or _warn_of_others(where, record, by_id)
    as_ids += by_id
    pair = _from_ids(where, record) if by_id else _from_text(
        where, record, tokenizer, chat)
    _check_pair(where, pair, tokenizer)
    if len(pair.clean_ids) == len(pair.corrupt_ids):
      pairs.append(pair)
    else:
      unequal.append((where.rpartition(':')[2], pair))
  if unequal and not (skip_unequal and pairs):
    error = NoPairs if skip_unequal else ValueError
    raise error(_of_unequal(path, unequal, len(pairs)))
  return FromFile(pairs, len(unequal), as_ids)


def _of_unequal(
    path: str, unequal: Sequence[tuple[str, AttributionPair]], equal: int
) -> str:
  """The message on pairs of unequal length, by line, beside so many others."""
  shown = [f'line {line} has {len(pair.clean_ids)} and'
           f' {len(pair.corrupt_ids)}' for line, pair in unequal[:_SHOWN]]
  if len(unequal) > _SHOWN:
    shown.append(f'and {len(unequal) - _SHOWN} more')
  remedy = ' or give --attribution_skip_unequal to leave these out'
  return (
      f'{path}: {len(unequal)} of {equal + len(unequal)} pairs have a clean and'
      ' a corrupted prompt of different token length; wanted equal ones. Tokens'
      f' by line: {"; ".join(shown)}. Choose subjects of as many tokens'
      f'{remedy if equal else ""}.')


def _warn_of_others(where: str, record: dict[str, Any], by_id: bool) -> bool:
  """Whether a line has fields that are not read; says so."""
  known = (*(_ID_FIELDS if by_id else _TEXT_FIELDS), _FACT)
  others = sorted(record.keys() - set(known))
  if others:
    logging.warning(
        '%s: ignores the fields %s, here and below; a pair is read from %s.',
        where, others, ', '.join(known))
  return bool(others)


def _fact(where: str, record: dict[str, Any]) -> str:
  if _FACT not in record:
    return where
  return jsonl.take_string(where, record, _FACT)


def _from_ids(where: str, record: dict[str, Any]) -> AttributionPair:
  ids = {}
  for field in _ID_FIELDS[:2]:
    values = jsonl.take(where, record, field, list, 'a list of token ids')
    for value in values:
      jsonl.check_type(where, field, value, int, 'a list of token ids')
    ids[field] = tuple(values)
  for field in _ID_FIELDS[2:]:
    ids[field] = jsonl.take(where, record, field, int, 'a token id')
  return AttributionPair(**ids, fact=_fact(where, record))


def _from_text(
    where: str, record: dict[str, Any],
    tokenizer: tokenization.Tokenizer | None, chat: bool) -> AttributionPair:
  texts = {f: jsonl.take_string(where, record, f) for f in _TEXT_FIELDS}
  if tokenizer is None:
    raise ValueError(
        f'{where}: the pair is given as text, but there is no tokenizer;'
        ' wanted one to encode it. Put tokenizer.json beside the weights of'
        f' --model, or give the pair as token ids ({", ".join(_ID_FIELDS)}).')
  sides = []
  for prompt, answer in (('clean', 'answer'), ('corrupt', 'corrupt_answer')):
    question = questions_lib.Question(
        id=where, fact=where, relation='pair', prompt=texts[prompt],
        answer=texts[answer], choices=(texts[answer],), use='train',
        source=where)
    (encoded,) = tokenization.encode_questions(
        [question], tokenizer, chat=chat)
    sides.append((tuple(encoded.prompt), encoded.choices[0][0]))
  (clean, answer), (corrupt, corrupt_answer) = sides
  return AttributionPair(
      clean_ids=clean, corrupt_ids=corrupt, answer_id=answer,
      corrupt_answer_id=corrupt_answer, fact=_fact(where, record))


def _check_pair(
    where: str, pair: AttributionPair,
    tokenizer: tokenization.Tokenizer | None) -> None:
  """Raises ValueError where a pair cannot be attributed."""
  lengths = len(pair.clean_ids), len(pair.corrupt_ids)
  if not all(lengths):
    raise ValueError(
        f'{where}: the clean prompt has {lengths[0]} tokens and the corrupted'
        f' one {lengths[1]}; wanted as many of each, above 0. Give both'
        ' prompts.')
  if pair.clean_ids == pair.corrupt_ids:
    raise ValueError(
        f'{where}: the clean and the corrupted prompt have the same tokens;'
        ' wanted them to differ, as by the subject. Choose another corrupted'
        ' prompt.')
  if pair.answer_id == pair.corrupt_answer_id:
    raise ValueError(
        f'{where}: both answers start with token {pair.answer_id}; wanted'
        ' different first tokens. Choose another corrupted prompt.')
  ids = (*pair.clean_ids, *pair.corrupt_ids, pair.answer_id,
         pair.corrupt_answer_id)
  size = len(tokenizer) if hasattr(tokenizer, '__len__') else None
  if min(ids) < 0 or (size is not None and max(ids) >= size):
    raise ValueError(
        f'{where}: token ids run from {min(ids)} to {max(ids)}; wanted them'
        f' between 0 and {"the vocabulary size" if size is None else size - 1}.'
        ' Encode the pair with the tokenizer of the model.')
