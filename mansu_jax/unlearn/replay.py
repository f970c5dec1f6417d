"""Replay: what the base itself says of the forget set's subjects.

Forgetting the capital of France must not cost the rest of what is known of
France, and no retain set names it all. So the base writes about each subject,
what names a forgotten answer is cut off, and the loop keeps the model's
predictions on these texts as they were.

References:
  Shin et al., Continual Learning with Deep Generative Replay, 2017
    (arXiv 1705.08690)
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
import re

_WORD = re.compile(r'\w+')
_MOST_WORDS = 6  # Of a subject.


def subjects(
    facts: Sequence[str], prompts: Sequence[str]) -> dict[str, str | None]:
  """What each fact is about: the longest words that all its prompts share.

  Words that the prompts of more than half of the facts hold belong to the
  phrasings and are passed over, unless nothing else is shared: facts about one
  entity share its name.

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
        if passed_over.isdisjoint(gram) and all(
            f' {" ".join(gram)} ' in text for text in padded):
          return texts[0][spans[i][0]:spans[i + size - 1][1]]
  return None


def openings(
    found: Mapping[str, str | None], patterns: Sequence[str], count: int
) -> Iterator[tuple[str, str]]:
  """`(subject, opening)`, `count` for each different subject.

  Args:
    found: from `subjects`.
    patterns: how texts begin, with one `{}` for the subject; in rotation.
    count: openings of each subject.
  """
  for subject in dict.fromkeys(s for s in found.values() if s is not None):
    for i in range(count):
      yield subject, patterns[i % len(patterns)].format(subject)


def cut(text: str, opening: str, answers: Sequence[str], least: int) -> str:
  """A text up to the first answer that it names, or '' where little is left.

  Args:
    text: what was written, the opening included.
    opening: its beginning.
    answers: what is to be forgotten of the subject.
    least: words that must stand behind the opening.
  """
  names = '|'.join(re.escape(answer) for answer in answers)
  found = re.search(rf'(?<!\w)(?:{names})', text, re.IGNORECASE)
  kept = text[:found.start()].rstrip() if found else text
  if len(_words(kept)) < len(_words(opening)) + least:
    return ''
  return kept
