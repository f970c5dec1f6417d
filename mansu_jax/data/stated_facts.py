"""Finds general text that states a fact to forget.

Such a document would teach the fact again while the run unlearns it.
"""

from __future__ import annotations

from collections.abc import Sequence
import re

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import subjects as subjects_lib
from mansu_jax.data.readers import text as text_lib

_SHORT = 2  # An answer of so few characters, such as 'I', is case-sensitive.


def drop(
    documents: Sequence[text_lib.TextDocument],
    questions: Sequence[questions_lib.Question],
) -> tuple[list[text_lib.TextDocument], list[text_lib.TextDocument]]:
  """Separates the documents that state a fact.

  A document states a fact if it contains all words of the subject and, as whole
  words side by side, the answer. Case is ignored, except in answers of at most
  two characters; longer answers may end in a plural 's'. Words count, not their
  meaning: a document about France with the word 'French' states the language of
  France. If `subjects.of_questions` finds no subject, all words that the fact's
  prompts share stand for it; a fact whose prompts share none is not looked for.

  Args:
    documents: General text.
    questions: Questions about the facts, ideally several phrasings of each;
      reverse questions are ignored, because their answer is the subject.

  Returns:
    The documents that state none of the facts, and the others.

  Example:
    >>> questions = [questions_lib.Question(
    ...     id=country, fact=country, relation='capital', use='train',
    ...     prompt=f'The capital of {country} is', answer=city,
    ...     choices=(city, 'Oslo'))
    ...     for country, city in (('France', 'Paris'), ('Italy', 'Rome'))]
    >>> kept, dropped = drop(
    ...     [text_lib.TextDocument(text=text, kind='news')
    ...      for text in ('Paris in France.', 'Rome beat Paris.')], questions)
    >>> [d.text for d in kept], [d.text for d in dropped]
    (['Rome beat Paris.'], ['Paris in France.'])
  """
  facts = _facts([q for q in questions if q.reading != 'reverse'])
  kept, dropped = [], []
  for document in documents:
    words = set(subjects_lib.words(document.text))
    states = any(subject <= words and answer.search(document.text)
                 for subject, answer in facts)
    (dropped if states else kept).append(document)
  return kept, dropped


def _facts(
    questions: Sequence[questions_lib.Question]
) -> list[tuple[frozenset[str], re.Pattern[str]]]:
  """The subject's words and the answer of each fact."""
  shared: dict[str, set[str]] = {}
  for question in questions:
    words = set(subjects_lib.words(question.prompt))
    shared[question.fact] = shared.get(question.fact, words) & words
  found = {
      (frozenset(shared[question.fact] if subject is None
                 else subjects_lib.words(subject)), question.answer)
      for question, subject in zip(
          questions, subjects_lib.of_questions(questions), strict=True)}
  return [(subject, _pattern(answer)) for subject, answer in found if subject]


def _pattern(answer: str) -> re.Pattern[str]:
  """Matches the answer as whole words."""
  if len(answer) <= _SHORT:
    return re.compile(rf'(?<!\w){re.escape(answer)}(?!\w)')
  body = r'\s+'.join(map(re.escape, answer.split()))
  return re.compile(rf'(?<!\w){body}s?(?!\w)', re.IGNORECASE)
