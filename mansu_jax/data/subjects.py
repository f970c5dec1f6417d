"""What facts are about, and the phrasings around it.

The same can then be asked of another subject: of the retain set's phrasings
about the forgotten subjects (swapped-subject prompts), or in the words of a question
about a subject that it does not fit (corrupted prompts).
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
import re
from typing import NamedTuple

from mansu_jax.data import questions as questions_lib

_WORD = re.compile(r'\w+')
_MOST_WORDS = 6  # Of a subject.


class Prompt(NamedTuple):
  """A phrasing with a subject in it."""

  subject: str
  text: str
  start: int  # Where the subject first stands in the text.


def of_questions(
    questions: Sequence[questions_lib.Question]) -> list[str | None]:
  """The subject of each question, found relation by relation."""
  by_relation: dict[str, list[questions_lib.Question]] = {}
  for question in questions:
    by_relation.setdefault(question.relation, []).append(question)
  found = {(name, fact): subject for name, group in by_relation.items()
           for fact, subject in subjects(
               [q.fact for q in group], [q.prompt for q in group]).items()}
  return [found[q.relation, q.fact] for q in questions]


def subjects(
    facts: Sequence[str], prompts: Sequence[str]) -> dict[str, str | None]:
  """What each fact is about: the longest words that all its prompts share.

  Words that the prompts of more than half of the facts hold belong to the
  phrasings: a subject does not begin or end with one, unless nothing else is
  shared, as where all facts are about one entity. Give the facts of one
  relation at a time. A word is a run of letters and digits, so texts without
  spaces have no subject shorter than a clause.

  Args:
    facts: fact of each prompt.
    prompts: texts, most usefully several phrasings of each fact.

  Returns:
    The subject of each fact as its first prompt writes it, or None where there
    is no telling: its prompts share no words, or two stretches as long; or it
    has one prompt, of which other facts' prompts do not tell the phrasing.
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
  """The words of a text, in small letters."""
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
  """From the first to the last word that is not common; not the whole."""
  own = [i for i, word in enumerate(first) if word not in common]
  if not own:
    return None
  found = range(own[0], own[-1] + 1)
  return found if len(found) <= min(_MOST_WORDS, len(first) - 1) else None


def _shared(
    first: Sequence[str], others: Sequence[Sequence[str]], common: set[str]
) -> range | None:
  """The longest stretch that all prompts hold, where there is one longest."""
  padded = [f' {" ".join(other)} ' for other in others]
  for passed_over in (common, set()):
    for size in range(min(_MOST_WORDS, len(first)), 0, -1):
      found = {}
      for i in range(len(first) - size + 1):
        gram = first[i:i + size]
        if passed_over.isdisjoint((gram[0], gram[-1])) and all(
            f' {" ".join(gram)} ' in other for other in padded):
          found.setdefault(gram, range(i, i + size))
      if found:
        return found.popitem()[1] if len(found) == 1 else None
  return None


def templates(
    prompts: Sequence[str], own: Sequence[str | None]
) -> list[tuple[str, ...]]:
  """The different phrasings, as the parts around their subjects.

  Where two subjects share some of the phrasings, only shared ones count: a
  phrasing of one fact may hold more of that fact than its subject.

  Args:
    prompts: texts.
    own: subject of each, or None, which leaves the prompt out.
  """
  about: dict[tuple[str, ...], set[str]] = {}
  for prompt, subject in zip(prompts, own, strict=True):
    parts = None if subject is None else around(prompt, subject)
    if parts is not None and any(parts):
      about.setdefault(parts, set()).add(subject.lower())
  shared = [parts for parts, names in about.items() if len(names) > 1]
  return shared or list(about)


def around(prompt: str, subject: str) -> tuple[str, ...] | None:
  """The parts around a subject, or None where the prompt does not hold it.

  Case counts, but for the subject's first letter; where it does not stand so,
  case does not count.
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
  """A phrasing from `templates` with a subject in it."""
  return Prompt(subject, subject.join(parts), len(parts[0]))
