"""Reads attribution pairs from JSONL files, as text or as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import jsonl

_TEXT_FIELDS = ('clean', 'corrupt', 'answer', 'corrupt_answer')
_ID_FIELDS = ('clean_ids', 'corrupt_ids', 'answer_id', 'corrupt_answer_id')
_FACT = 'fact'
_SHOWN = 20  # Most pairs of unequal length that a message lists.


class PairFile(NamedTuple):
  """Pairs read from a file.

  Attributes:
    pairs: Pairs in file order.
    skipped: Number of pairs left out because their prompts differ in length.
    as_ids: Number of pairs given as token ids, skipped ones included. The chat
      template does not apply to them.
  """

  pairs: list[pairs_lib.AttributionPair]
  skipped: int
  as_ids: int


def read_pairs(
    path: str, tokenizer: tokenization.Tokenizer | None = None, *,
    chat: bool = False, skip_unequal: bool = False) -> PairFile:
  """Reads pairs from a JSONL file, given as text or as token ids.

  The fields are `clean`, `corrupt`, `answer` and `corrupt_answer` (text), or
  `clean_ids`, `corrupt_ids`, `answer_id` and `corrupt_answer_id`. An optional
  `fact` groups pairs; without it, each pair is a fact of its own. Other fields
  are ignored, with one warning per file.

  Args:
    path: A file, or `shipped:NAME`.
    tokenizer: A transformers tokenizer. Pairs given as text require it. If it
      has a length, ids must be below that.
    chat: Whether to apply the chat template to prompts given as text.
    skip_unequal: Whether to leave out pairs whose prompts differ in token
      length, instead of raising.

  Raises:
    NoPairs: `skip_unequal` leaves out all pairs.
    ValueError: the file is missing or malformed, both prompts are equal, or
      both answers start with the same token (the message names file and line);
      or prompts differ in token length (the message lists the lines).

  Example:
    >>> import json, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), 'pairs.jsonl')
    >>> with open(path, 'w') as file:
    ...   _ = file.write(json.dumps({
    ...       'clean_ids': [5, 6], 'corrupt_ids': [7, 6],
    ...       'answer_id': 8, 'corrupt_answer_id': 9, 'fact': 'f'}))
    >>> (pair,) = read_pairs(path).pairs
    >>> pair.clean_ids, pair.corrupt_ids, pair.fact
    ((5, 6), (7, 6), 'f')
  """
  pairs, warned, unequal, as_ids = [], False, [], 0
  for where, record in jsonl.read_records(path):
    has_all = lambda fields, record=record: record.keys() >= set(fields)
    by_id = has_all(_ID_FIELDS) or not has_all(_TEXT_FIELDS) and any(
        field in record for field in _ID_FIELDS)
    warned = warned or _warn_of_unknown_fields(where, record, by_id)
    as_ids += by_id
    pair = _from_ids(where, record) if by_id else _from_text(
        where, record, tokenizer, chat)
    _check_pair(where, pair, tokenizer)
    if len(pair.clean_ids) == len(pair.corrupt_ids):
      pairs.append(pair)
    else:
      unequal.append((where.rpartition(':')[2], pair))
  if unequal and not (skip_unequal and pairs):
    error = pairs_lib.NoPairs if skip_unequal else ValueError
    raise error(_unequal_message(path, unequal, len(pairs)))
  return PairFile(pairs, len(unequal), as_ids)


def _unequal_message(
    path: str, unequal: Sequence[tuple[str, pairs_lib.AttributionPair]],
    equal: int) -> str:
  """Lists pairs of unequal length by line; `equal` counts the other pairs."""
  shown = [f'line {line} has {len(pair.clean_ids)} and'
           f' {len(pair.corrupt_ids)}' for line, pair in unequal[:_SHOWN]]
  if len(unequal) > _SHOWN:
    shown.append(f'and {len(unequal) - _SHOWN} more')
  remedy = ', or give --attribution_skip_unequal to leave these pairs out'
  return (
      f'{path}: {len(unequal)} of {equal + len(unequal)} pairs have a clean and'
      ' a corrupted prompt of different token length; wanted equal lengths.'
      f' Tokens by line: {"; ".join(shown)}. Choose subjects with equal numbers'
      f' of tokens{remedy if equal else ""}.')


def _warn_of_unknown_fields(
    where: str, record: dict[str, Any], by_id: bool) -> bool:
  """Logs a warning if a line has unknown fields; returns whether it does."""
  known = (*(_ID_FIELDS if by_id else _TEXT_FIELDS), _FACT)
  unknown = sorted(record.keys() - set(known))
  if unknown:
    logging.warning(
        '%s: the reader ignores the fields %s in this file; a pair has the'
        ' fields %s.', where, unknown, ', '.join(known))
  return bool(unknown)


def _fact(where: str, record: dict[str, Any]) -> str:
  if _FACT not in record:
    return where
  return jsonl.take_string(where, record, _FACT)


def _from_ids(where: str, record: dict[str, Any]) -> pairs_lib.AttributionPair:
  ids = {}
  for field in _ID_FIELDS[:2]:
    values = jsonl.take(where, record, field, list, 'a list of token ids')
    for value in values:
      jsonl.check_type(where, field, value, int, 'a list of token ids')
    ids[field] = tuple(values)
  for field in _ID_FIELDS[2:]:
    ids[field] = jsonl.take(where, record, field, int, 'a token id')
  return pairs_lib.AttributionPair(**ids, fact=_fact(where, record))


def _from_text(
    where: str, record: dict[str, Any],
    tokenizer: tokenization.Tokenizer | None, chat: bool
) -> pairs_lib.AttributionPair:
  texts = {f: jsonl.take_string(where, record, f) for f in _TEXT_FIELDS}
  if tokenizer is None:
    raise ValueError(
        f'{where}: the pair is given as text, but the model has no tokenizer;'
        ' wanted a tokenizer to encode the pair. Put tokenizer.json beside the'
        ' weights of --model, or give the pair as token ids'
        f' ({", ".join(_ID_FIELDS)}).')
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
  return pairs_lib.AttributionPair(
      clean_ids=clean, corrupt_ids=corrupt, answer_id=answer,
      corrupt_answer_id=corrupt_answer, fact=_fact(where, record))


def _check_pair(
    where: str, pair: pairs_lib.AttributionPair,
    tokenizer: tokenization.Tokenizer | None) -> None:
  """Raises ValueError if a pair is not usable for attribution."""
  lengths = len(pair.clean_ids), len(pair.corrupt_ids)
  if not all(lengths):
    raise ValueError(
        f'{where}: the clean prompt has {lengths[0]} tokens and the corrupted'
        f' prompt {lengths[1]}; wanted equal numbers above 0. Give both'
        ' prompts.')
  if pair.clean_ids == pair.corrupt_ids:
    raise ValueError(
        f'{where}: the clean and the corrupted prompt have the same tokens;'
        ' wanted prompts that differ, for example in the subject. Choose'
        ' another corrupted prompt.')
  if pair.answer_id == pair.corrupt_answer_id:
    raise ValueError(
        f'{where}: both answers start with token {pair.answer_id}; wanted'
        ' different first tokens. Choose another corrupted prompt.')
  ids = (*pair.clean_ids, *pair.corrupt_ids, pair.answer_id,
         pair.corrupt_answer_id)
  size = len(tokenizer) if hasattr(tokenizer, '__len__') else None
  if min(ids) < 0 or (size is not None and max(ids) >= size):
    raise ValueError(
        f'{where}: token ids range from {min(ids)} to {max(ids)}; wanted ids'
        f' from 0 to {"the vocabulary size" if size is None else size - 1}.'
        ' Encode the pair with the tokenizer of the model.')
