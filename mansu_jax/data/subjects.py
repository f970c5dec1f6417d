"""Finds the subject of each fact and the phrasings around it.

A phrasing can then be asked about another subject. Swapped-subject prompts put
forgotten subjects into the retain set's phrasings; corrupted prompts put
another subject into a question's own phrasing.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
import re
from typing import NamedTuple

from mansu_jax.data import questions as questions_lib

_WORD = re.compile(r'\w+')
_MOST_WORDS = 6  # Most words in a subject.


class Prompt(NamedTuple):
  """A phrasing filled with a subject."""

  subject: str
  text: str
  start: int  # Offset of the subject's first occurrence in the text.


def of_questions(
    questions: Sequence[questions_lib.Question]) -> list[str | None]:
  """Finds the subject of each question; None where `subjects` finds none.

  That of a reverse question is what it names, the answer of the others.
  """
  groups: dict[str, list[questions_lib.Question]] = {}
  for question in questions:
    groups.setdefault(question.asked, []).append(question)
  found = {(asked, fact): subject for asked, group in groups.items()
           for fact, subject in subjects(
               [q.fact for q in group], [q.prompt for q in group]).items()}
  return [found[q.asked, q.fact] for q in questions]


def subjects(
    facts: Sequence[str], prompts: Sequence[str]) -> dict[str, str | None]:
  """Finds each fact's subject: the longest words that all its prompts share.

  Words in the prompts of more than half of the facts count as phrasing. A
  subject neither begins nor ends with such a word, unless the prompts share
  nothing else, for example because all facts are about one entity. Pass the
  facts of one relation at a time. A word is a run of letters and digits, so in
  texts without spaces no subject is shorter than a clause.

  Args:
    facts: Fact of each prompt.
    prompts: Texts, ideally several phrasings of each fact.

  Returns:
    The subject of each fact, spelled as in its first prompt. None if the
    subject is ambiguous: its prompts share no words, or share two stretches of
    the same length; or its only prompt does not separate into common words and
    a subject.

  Example:
    >>> subjects(
    ...     ['france', 'france', 'italy', 'italy'],
    ...     ['The capital of France is', 'France has the capital',
    ...      'The capital of Italy is', 'Italy has the capital'])
    {'france': 'France', 'italy': 'Italy'}
  """
  by_fact: dict[str, list[str]] = {}
  for fact, prompt in zip(facts, prompts, strict=True):
    by_fact.setdefault(fact, []).append(prompt)
  held = collections.Counter(
      word for texts in by_fact.values()
      for word in {w for text in texts for w in words(text)})
  common = {w for w, n in held.items() if n > len(by_fact) / 2}
  return {fact: _subject(texts, common) for fact, texts in by_fact.items()}


def words(text: str) -> list[str]:
  """The words of a text, in lower case."""
  return [word.lower() for word in _WORD.findall(text)]


def _subject(texts: Sequence[str], common: set[str]) -> str | None:
  spans = [m.span() for m in _WORD.finditer(texts[0])]
  first, *others = dict.fromkeys(tuple(words(text)) for text in texts)
  find = _shared if others else _between_common
  found = find(first, others, common)
  if found is None:
    return None
  return texts[0][spans[found.start][0]:spans[found.stop - 1][1]]


def _between_common(
    first: Sequence[str], _: Sequence[Sequence[str]], common: set[str]
) -> range | None:
  """The range from the first to the last word that is not common.

  None if the range covers the whole prompt or more than `_MOST_WORDS` words.
  """
  own = [i for i, word in enumerate(first) if word not in common]
  if not own:
    return None
  found = range(own[0], own[-1] + 1)
  return found if len(found) <= min(_MOST_WORDS, len(first) - 1) else None


def _shared(
    first: Sequence[str], others: Sequence[Sequence[str]], common: set[str]
) -> range | None:
  """The longest stretch that all prompts share; None if two are longest."""
  padded = [f' {" ".join(other)} ' for other in others]
  for excluded in (common, set()):
    for size in range(min(_MOST_WORDS, len(first)), 0, -1):
      found = {}
      for i in range(len(first) - size + 1):
        gram = first[i:i + size]
        if excluded.isdisjoint((gram[0], gram[-1])) and all(
            f' {" ".join(gram)} ' in other for other in padded):
          found.setdefault(gram, range(i, i + size))
      if found:
        return found.popitem()[1] if len(found) == 1 else None
  return None


def templates(
    prompts: Sequence[str], own: Sequence[str | None]
) -> list[tuple[str, ...]]:
  """Extracts the distinct phrasings, as the text parts around the subjects.

  If some phrasings occur with two subjects, only these are returned: a phrasing
  of a single fact may contain more of that fact than its subject.

  Args:
    prompts: Texts.
    own: Subject of each prompt; None leaves the prompt out.

  Example:
    >>> templates(['The capital of France is', 'The capital of Italy is'],
    ...           ['France', 'Italy'])
    [('The capital of ', ' is')]
  """
  about: dict[tuple[str, ...], set[str]] = {}
  for prompt, subject in zip(prompts, own, strict=True):
    parts = None if subject is None else around(prompt, subject)
    if parts is not None and any(parts):
      about.setdefault(parts, set()).add(subject.lower())
  shared = [parts for parts, names in about.items() if len(names) > 1]
  return shared or list(about)


def around(prompt: str, subject: str) -> tuple[str, ...] | None:
  """Splits a prompt at its subject; None if the subject does not occur.

  The match is case-sensitive except for the subject's first letter. If there is
  no such match, it is case-insensitive.
  """
  either = '|'.join(re.escape(c) for c in dict.fromkeys(
      (subject[0], subject[0].upper(), subject[0].lower())))
  head, *tail = _WORD.findall(subject)
  body = r'\W+'.join([
      f'(?:{either}){re.escape(head[1:])}', *map(re.escape, tail)])
  for flags in (0, re.IGNORECASE):
    parts = re.split(rf'(?<!\w){body}(?!\w)', prompt, flags=flags)
    if len(parts) > 1:
      return tuple(parts)
  return None


def ask(parts: tuple[str, ...], subject: str) -> Prompt:
  """Fills a phrasing from `templates` with a subject."""
  return Prompt(subject, subject.join(parts), len(parts[0]))
