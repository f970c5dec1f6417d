"""Questions about facts: the JSONL schema that forget and retain sets share."""

from __future__ import annotations

import dataclasses
from typing import Any

from mansu_jax.data.readers import jsonl

USES = ('train', 'near', 'far')

resolve = jsonl.resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """One phrasing of one fact, with fixed choices.

  Attributes:
    id: unique name.
    fact: the fact it asks for; phrasings of one fact share it.
    relation: kind of fact, for example `capital`.
    prompt: text that the answer continues.
    answer: the right continuation, one of `choices`.
    choices: two or more distinct continuations.
    use: `train`, `near` (held-out paraphrase) or `far` (another form).
    source: `file:line` it was read from, for messages; not compared.
  """

  id: str
  fact: str
  relation: str
  prompt: str
  answer: str
  choices: tuple[str, ...]
  use: str
  source: str = dataclasses.field(default='', compare=False)

  @property
  def answer_index(self) -> int:
    """Index of the answer among the choices."""
    return self.choices.index(self.answer)

  @property
  def chance(self) -> float:
    """Probability of the answer when guessing among the choices."""
    return 1 / len(self.choices)


def read_questions(path: str) -> list[Question]:
  """Reads one JSONL file of questions.

  Fields that the schema does not name are ignored, as the contract lets them
  be added.

  Args:
    path: a file, or `shipped:NAME`.

  Returns:
    The questions in file order.

  Raises:
    ValueError: the file is missing, empty or malformed, or an id repeats; the
      message names file and line.
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
          f'{question.source}: id {question.id!r} is already taken at'
          f' {other.source}; wanted a unique id for every question. Rename one'
          ' or drop the repetition.')


def parse(where: str, record: dict[str, Any]) -> Question:
  """One question of a parsed line; ValueError naming `where` otherwise."""
  fields = {
      name: jsonl.take_string(where, record, name)
      for name in ('id', 'fact', 'relation', 'prompt', 'answer', 'use')
  }
  if fields['use'] not in USES:
    raise ValueError(
        f"{where}: field 'use' is {fields['use']!r}; wanted one of"
        f' {", ".join(USES)}. Correct the line.')
  choices = _parse_choices(where, record, fields['answer'])
  return Question(**fields, choices=choices, source=where)


def _parse_choices(
    where: str, record: dict[str, Any], answer: str) -> tuple[str, ...]:
  """Returns the choices; ValueError when they cannot be scored."""
  choices = jsonl.take(where, record, 'choices', list, 'a list of strings')
  for choice in choices:
    jsonl.check_type(where, 'choices', choice, str, 'a list of strings')
    if not choice.strip():
      raise ValueError(
          f"{where}: field 'choices' has a blank choice {choice!r}; wanted"
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
        ' more. Add wrong choices.')
  if answer not in choices:
    raise ValueError(
        f"{where}: answer {answer!r} is not among the choices {choices};"
        ' wanted it there, spelled alike. Correct one of them.')
  return tuple(choices)
