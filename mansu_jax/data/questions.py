"""Questions about facts, and the JSONL schema of the data files."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from mansu_jax.data.readers import jsonl

USES = ('train', 'near', 'far')
# How a question asks for its fact; `choice` unless the line says otherwise.
READINGS = ('choice', 'choice_unseen', 'choice_same_subject', 'reverse')

_SET = re.compile(r'(_unseen|_set)_\d+$')

resolve = jsonl.resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """One phrasing of one fact, with fixed choices.

  Attributes:
    id: Unique name.
    fact: Name of the fact; all its phrasings share it.
    relation: Kind of fact, for example `capital`.
    prompt: Text that the answer continues.
    answer: Right continuation, one of `choices`.
    choices: Distinct continuations, two or more; only the answer if the line of
      a `train` question gives none.
    use: `train`, `near` (a paraphrase that is not trained on) or `far` (another
      form, such as a question or a chat turn).
    reading: `choice` (the usual wrong choices), `choice_unseen` (wrong choices
      that no training question has), `choice_same_subject` (wrong choices that
      belong to the same subject, such as other cities of a country), or
      `reverse` (asks for the subject).
    source: `file:line`, for error messages; ignored by `==`.

  Example:
    >>> question = Question(
    ...     id='capital/france/train_0', fact='capital/france',
    ...     relation='capital', prompt='The capital of France is',
    ...     answer='Paris', choices=('Rome', 'Paris'), use='train')
    >>> question.answer_index, question.chance
    (1, 0.5)
  """

  id: str
  fact: str
  relation: str
  prompt: str
  answer: str
  choices: tuple[str, ...]
  use: str
  reading: str = 'choice'
  source: str = dataclasses.field(default='', compare=False)

  @property
  def asked(self) -> str:
    """What it asks for: the relation, or `RELATION, reversed`."""
    return self.relation + ', reversed' * (self.reading == 'reverse')

  @property
  def answer_index(self) -> int:
    """Index of the answer among the choices."""
    return self.choices.index(self.answer)

  @property
  def form(self) -> str:
    """Name of the phrasing and choices: the last part of the id."""
    return self.id.rsplit('/', 1)[-1]

  @property
  def wording(self) -> str:
    """Name of the phrasing, without the number of the set of choices."""
    return _SET.sub('', self.form)

  @property
  def chance(self) -> float:
    """Probability of the answer when guessing among the choices."""
    return 1 / len(self.choices)


def of_line(line: Mapping[str, Any]) -> Question:
  """The question of a line of answers that a run wrote.

  Args:
    line: A line of `answers.jsonl`, `generations.jsonl` or `attacks.jsonl`.

  Returns:
    The question; its use is `far`, as lines do not name it, and it has no
    choices if the line has none.
  """
  return Question(
      use='far', choices=tuple(line.get('choices', ())),
      reading=line.get('reading', 'choice'), **{name: line[name] for name in (
          'id', 'fact', 'relation', 'prompt', 'answer')})


def read_questions(path: str) -> list[Question]:
  """Reads one JSONL file of questions; ignores unknown fields.

  Args:
    path: A file, or `shipped:NAME`.

  Returns:
    The questions in file order.

  Raises:
    ValueError: the file is missing, empty or malformed, or two questions share
      an id. The message names file and line.

  Example:
    >>> questions = read_questions('shipped:capitals_europe')
    >>> questions[0].prompt, questions[0].answer, questions[0].use
    ('The capital of France is', 'Paris', 'train')
  """
  questions = [parse(where, r) for where, r in jsonl.read_records(path)]
  check_unique_ids(questions)
  return questions


def check_unique_ids(questions: list[Question]) -> None:
  """Raises ValueError when two questions share an id."""
  first: dict[str, Question] = {}
  for question in questions:
    other = first.setdefault(question.id, question)
    if other is not question:
      raise ValueError(
          f'{question.source}: id {question.id!r} is already used at'
          f' {other.source}; wanted a unique id for each question. Rename or'
          ' remove one.')


def parse(where: str, record: dict[str, Any]) -> Question:
  """Builds a question from a parsed line; ValueError names `where`."""
  fields = {
      name: jsonl.take_string(where, record, name)
      for name in ('id', 'fact', 'relation', 'prompt', 'answer', 'use')
  }
  if fields['use'] not in USES:
    raise ValueError(
        f"{where}: field 'use' is {fields['use']!r}; wanted one of"
        f' {", ".join(USES)}. Correct the line.')
  if 'reading' in record:
    fields['reading'] = _parse_reading(where, record, fields['use'])
  if fields['use'] == 'train' and 'choices' not in record:
    choices = fields['answer'],
  else:
    choices = _parse_choices(where, record, fields['answer'])
  return Question(**fields, choices=choices, source=where)


def _parse_reading(where: str, record: dict[str, Any], use: str) -> str:
  """Returns the reading; ValueError if it is invalid."""
  reading = jsonl.take_string(where, record, 'reading')
  if reading not in READINGS:
    raise ValueError(
        f"{where}: field 'reading' is {reading!r}; wanted one of"
        f' {", ".join(READINGS)}. Correct the line.')
  if use == 'train' and reading.startswith('choice_'):
    raise ValueError(
        f"{where}: a 'train' question has the reading {reading!r}, whose"
        " choices training must not see; wanted 'near' or 'far'. Correct the"
        ' line.')
  return reading


def _parse_choices(
    where: str, record: dict[str, Any], answer: str) -> tuple[str, ...]:
  """Returns the choices; ValueError if they are invalid."""
  choices = jsonl.take(where, record, 'choices', list, 'a list of strings')
  for choice in choices:
    jsonl.check_type(where, 'choices', choice, str, 'a list of strings')
    if not choice.strip():
      raise ValueError(
          f"{where}: field 'choices' has a blank entry {choice!r}; wanted"
          ' text. Fill it in or remove it.')
  stripped = [choice.strip() for choice in choices]
  repeated = sorted({c for c in stripped if stripped.count(c) > 1})
  if repeated:
    raise ValueError(
        f"{where}: field 'choices' repeats {repeated}; wanted distinct"
        ' choices. Replace the duplicates.')
  if len(choices) < 2:
    raise ValueError(
        f"{where}: field 'choices' has {len(choices)} entries; wanted two or"
        " more. Add wrong choices; only a 'train' question may leave the field"
        ' out.')
  if answer not in choices:
    raise ValueError(
        f"{where}: answer {answer!r} is not among the choices {choices};"
        ' wanted one of them, spelled the same. Correct the answer or the'
        ' choices.')
  return tuple(choices)
