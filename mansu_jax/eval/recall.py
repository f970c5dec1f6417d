"""Questions to be answered in the model's own words, and what counts as right.

`plain` chooses the questions, `few_shot` puts solved examples before them,
`says` judges an answer, and `says_for` measures how often an answer is said
about other facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
import re
import unicodedata

import numpy as np

from mansu_jax import types
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization

Question = questions_lib.Question

EXAMPLES = 3
_BETWEEN = '\n\n'  # Text behind each example.
_FEWEST = 10  # Other facts that `says_for` wants.
_SHORT = 2  # Characters of an answer whose case counts.

_OPENING = re.compile(r"""(?:[\s"'“”‘„«»*_`(\[{:;,.…–—#>]|-\s)+""")
_ARTICLE = re.compile(r'(?:the|an?)\s+')
_GOES_ON = re.compile(r'[^\W_]|-[^\W_]')  # The word is longer than the answer.


class FewShot(NamedTuple):
  """A question after solved examples.

  Attributes:
    question: The question.
    examples: Text before its prompt; many questions share it.
  """

  question: Question
  examples: str

  @property
  def prompt(self) -> str:
    """The whole text to continue."""
    return self.examples + self.question.prompt


def plain(questions: Sequence[Question]) -> list[Question]:
  """The questions whose answers are read from the model's own words.

  Args:
    questions: Questions about the forgotten facts.

  Returns:
    Near and far questions with the reading `choice`, the first of each fact and
    form.
  """
  chosen: dict[tuple[str, str], Question] = {}
  for q in questions:
    if q.use != 'train' and q.reading == 'choice':
      chosen.setdefault((q.fact, q.form), q)
  return list(chosen.values())


def few_shot(
    asked: Sequence[Question], pool: Sequence[Question],
    tokenizer: types.PretrainedTokenizer, *, count: int = EXAMPLES,
    seed: int = 0) -> list[FewShot]:
  """Puts solved examples before questions.

  An example is a question of the same form about another fact with another
  answer, and its answer. The examples of a question have different answers and
  are of its relation or, if that has too few, of any relation. The seed orders
  the facts of a form, those that are not asked in it first, and each question
  takes the first that it may. So a form's questions mostly have the same
  examples, which the model can run once.

  A question without enough examples is left out. So is one that contains
  special tokens, such as chat turns: examples behind an open turn would be no
  well-formed conversation. With the chat template, examples and question are
  one user turn.

  Args:
    asked: Questions to ask.
    pool: Questions to take examples from, as from `plain`.
    tokenizer: A transformers tokenizer.
    count: Examples per question.
    seed: Seed of the order.
  """
  shown = {(q.fact, q.form) for q in asked}
  order = np.random.default_rng(seed).permutation(len(pool))
  forms: dict[str, list[Question]] = {}
  for q in sorted((pool[i] for i in order),
                  key=lambda q: (q.fact, q.form) in shown):
    forms.setdefault(q.form, []).append(q)
  out = []
  for question in asked:
    if tokenization.is_marked(question.prompt, tokenizer):
      continue
    known = forms.get(question.form, [])
    same = [q for q in known if q.relation == question.relation]
    found = (_examples(question, same, count)
             or _examples(question, known, count))
    if found:
      out.append(FewShot(question, ''.join(map(solved, found))))
  return out


def _examples(
    question: Question, known: Sequence[Question], count: int
) -> list[Question]:
  """The first questions with different answers; [] if there are too few."""
  answers, found = {_folded(question.answer)}, []
  for other in known:
    answer = _folded(other.answer)
    if other.fact != question.fact and answer not in answers:
      answers.add(answer)
      found.append(other)
  return found[:count] if len(found) >= count else []


def solved(question: Question) -> str:
  """A question with its answer, to stand before another one."""
  return f'{question.prompt.rstrip()} {question.answer.strip()}{_BETWEEN}'


def says(text: str, question: Question) -> bool:
  """Whether a continuation begins with the question's answer.

  White space, accents, opening punctuation, an article and, unless the answer
  has one or two characters, case are ignored. The answer must end with its
  word: 'Parisian' and 'Paris-born' do not say 'Paris'.
  """
  answer = question.answer.strip()
  if len(answer) <= _SHORT:  # An article may be the answer.
    return _begins(_opened(_clean(text)), _opened(_clean(answer)))
  return _begins(_folded(text), _folded(answer))


def _begins(text: str, answer: str) -> bool:
  return text.startswith(answer) and not _GOES_ON.match(text[len(answer):])


def _folded(text: str) -> str:
  """The text in lower case, from its first word that is no article."""
  text = _opened(_clean(text).casefold())
  return _opened(_ARTICLE.sub('', text, count=1)
                 if _ARTICLE.match(text) else text)


def _clean(text: str) -> str:
  """The text with single spaces, straight apostrophes and no accents."""
  letters = unicodedata.normalize('NFKD', text.replace('’', "'"))
  return ' '.join(
      ''.join(c for c in letters if not unicodedata.combining(c)).split())


def _opened(text: str) -> str:
  """The text without its opening punctuation; punctuation alone is kept."""
  match = _OPENING.match(text)
  return text[match.end():] or text if match else text


def says_for(
    texts: Sequence[str], questions: Sequence[Question]) -> np.ndarray:
  """How often each answer is said about other facts.

  A model that is ignorant of a fact, but not of what answers look like, answers
  it right about as often.

  Args:
    texts: Continuations of n questions.
    questions: The n questions.

  Returns:
    [n] float: the share of the continuations about other facts of the same
    form and relation that say the question's answer. If there are less than
    ten, of the same form; if these are less than ten as well, of any form. NaN
    if no other fact is asked.
  """
  out = np.full(len(questions), np.nan)
  said: dict[str, np.ndarray] = {}
  forms = np.array([q.form for q in questions])
  relations = np.array([q.relation for q in questions])
  facts = np.array([q.fact for q in questions])
  for i, question in enumerate(questions):
    if question.answer not in said:
      said[question.answer] = np.array([says(t, question) for t in texts])
    others = facts != question.fact
    alike = others & (forms == forms[i])
    for rows in (alike & (relations == relations[i]), alike, others):
      if rows.sum() >= _FEWEST:
        break
    if rows.any():
      out[i] = said[question.answer][rows].mean()
  return out
