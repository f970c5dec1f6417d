"""Crossed prompts: other relations' phrasings asked of the forgotten subjects.

Forgetting the capital of Japan must not cost the rest of what is known of
Japan, and no retain set names it all. So the retain set's prompts are asked of
the forget set's subjects ("The main language of Japan is"): whatever the base
says then, sense or not, is to be kept. No labels are needed, and the edit
learns to depend on what is asked, not on the subject alone.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
import re
from typing import NamedTuple

_WORD = re.compile(r'\w+')
_MOST_WORDS = 6  # Of a subject.


class Prompt(NamedTuple):
  """A crossed prompt."""

  subject: str
  text: str
  start: int  # Where the subject first stands in the text.


def subjects(
    facts: Sequence[str], prompts: Sequence[str]) -> dict[str, str | None]:
  """What each fact is about: the longest words that all its prompts share.

  Words that the prompts of more than half of the facts hold belong to the
  phrasings: a subject does not begin or end with one, unless nothing else is
  shared, as where all facts are about one entity. Give the facts of one
  relation at a time.

  Args:
    facts: fact of each prompt.
    prompts: texts, most usefully several phrasings of each fact.

  Returns:
    The subject of each fact as its first prompt writes it, or None where its
    prompts share no word.
  """
  by_fact: dict[str, list[str]] = {}
  for fact, prompt in zip(facts, prompts, strict=True):
    by_fact.setdefault(fact, []).append(prompt)
  held = collections.Counter(
      word for texts in by_fact.values()
      for word in {w for text in texts for w in _words(text)})
  common = {w for w, n in held.items() if n > len(by_fact) / 2}
  return {fact: _subject(texts, common) for fact, texts in by_fact.items()}


def _words(text: str) -> list[str]:
  return [word.lower() for word in _WORD.findall(text)]


def _subject(texts: Sequence[str], common: set[str]) -> str | None:
  spans = [m.span() for m in _WORD.finditer(texts[0])]
  words = _words(texts[0])
  padded = [f' {" ".join(_words(text))} ' for text in texts]
  for passed_over in (common, set()):
    for size in range(min(_MOST_WORDS, len(words)), 0, -1):
      for i in range(len(words) - size + 1):
        gram = words[i:i + size]
        if passed_over.isdisjoint((gram[0], gram[-1])) and all(
            f' {" ".join(gram)} ' in text for text in padded):
          return texts[0][spans[i][0]:spans[i + size - 1][1]]
  return None


def templates(
    prompts: Sequence[str], own: Sequence[str | None]
) -> list[tuple[str, ...]]:
  """The different phrasings, as the parts around their subjects.

  Args:
    prompts: texts.
    own: subject of each, or None, which leaves the prompt out.
  """
  found = {}
  for prompt, subject in zip(prompts, own, strict=True):
    if subject is not None:
      parts = tuple(re.split(
          rf'(?<!\w){re.escape(subject)}(?!\w)', prompt, flags=re.IGNORECASE))
      if len(parts) > 1:
        found[parts] = None
  return list(found)


def cross(
    phrasings: Iterable[tuple[str, ...]], others: Sequence[str]
) -> Iterator[Prompt]:
  """Every phrasing with every other subject.

  Args:
    phrasings: from `templates`.
    others: subjects.
  """
  for parts in phrasings:
    for subject in others:
      yield Prompt(subject, subject.join(parts), len(parts[0]))
