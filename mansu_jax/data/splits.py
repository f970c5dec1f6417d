"""Forms splits from the role of each file and the use of each question.

Roles are `forget`, `retain`, `heldout` and `unknown`; uses are `train`, `near`
and `far`.

| split | role | use |
|---|---|---|
| `forget` | forget | train |
| `forget_paraphrase` | forget | near |
| `forget_far` | forget | far |
| `retain` | retain | near, far |
| `retain_heldout` | heldout | any |

Forget questions of another reading than `choice` are splits of their own:
`forget_unseen`, `forget_same_subject` and `forget_reverse`, of any use but
`train`. Retain questions of other readings are not asked, nor are questions
without wrong choices. Questions of the role `unknown` form no split; attacks
use them. Training uses the `train` questions of the forget and retain files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools

from mansu_jax.data import questions as questions_lib
from mansu_jax.data.readers import text as text_lib

Question = questions_lib.Question

FORGOTTEN = ('forget_paraphrase', 'forget_far')  # Phrasings not trained on.
KEPT = ('retain', 'retain_heldout')
# Splits that each reading of forgetting asks.
OF_READING = {
    'choice': FORGOTTEN,
    'choice_unseen': ('forget_unseen',),
    'choice_same_subject': ('forget_same_subject',),
    'reverse': ('forget_reverse',),
}
NAMES = ('forget', *FORGOTTEN, *KEPT)  # Every run should have these.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
  """All data of a run.

  Attributes:
    forget_train: Questions to unlearn.
    retain_train: Questions that training retains.
    evaluation: `{split: questions}` for each name in `NAMES` and each split of
      another reading that has questions. A split of `NAMES` without questions
      is an empty list.
    text: General text documents.
    unknown: Questions about facts that the base never knew, of any use.
  """

  forget_train: list[Question]
  retain_train: list[Question]
  evaluation: Mapping[str, list[Question]]
  text: list[text_lib.TextDocument]
  unknown: list[Question] = dataclasses.field(default_factory=list)

  @property
  def missing(self) -> tuple[str, ...]:
    """Names of the evaluation splits without questions."""
    return tuple(name for name in NAMES if not self.evaluation[name])


def read_splits(
    *,
    forget: Sequence[str],
    retain: Sequence[str],
    heldout: Sequence[str] = (),
    text: Sequence[str] = (),
    unknown: Sequence[str] = (),
    require_train: bool = True,
) -> Splits:
  """Reads the files of each role and forms the splits.

  Args:
    forget: Question files to unlearn.
    retain: Question files to retain.
    heldout: Question files that training never uses.
    text: General text files.
    unknown: Question files about facts that the base never knew.
    require_train: Whether the forget and retain roles need files with `train`
      questions. False for modes without training, such as audit.

  Raises:
    ValueError: a file is missing or malformed, a set is empty, two roles
      overlap, or an evaluation question repeats a trained one.

  Example:
    >>> splits = read_splits(
    ...     forget=['shipped:capitals_europe'],
    ...     retain=['shipped:retain_author'])
    >>> len(splits.forget_train), len(splits.evaluation['forget_paraphrase'])
    (600, 50)
    >>> splits.missing
    ('retain_heldout',)
  """
  if require_train:
    _check_named(forget=forget, retain=retain)
  roles = {
      role: [q for path in paths for q in questions_lib.read_questions(path)]
      for role, paths in (
          ('forget', forget), ('retain', retain), ('heldout', heldout),
          ('unknown', unknown))}
  documents = [d for path in text for d in text_lib.read_text(path)]
  return build_splits(**roles, text=documents, require_train=require_train)


def _check_named(**roles: Sequence[str]) -> None:
  for role, paths in roles.items():
    if not paths:
      raise ValueError(
          f'No file is given for the {role} set; wanted at least one question'
          f' file. Give --data_{role}=FILE.')


def build_splits(
    *,
    forget: list[Question],
    retain: list[Question],
    heldout: list[Question],
    text: list[text_lib.TextDocument],
    unknown: Sequence[Question] = (),
    require_train: bool = True,
) -> Splits:
  """Forms the splits of parsed questions; see `read_splits`."""
  roles = {'forget': forget, 'retain': retain, 'heldout': heldout,
           'unknown': list(unknown)}
  for (role, own), (other, others) in itertools.combinations(
      roles.items(), 2):
    check_disjoint(role, own, other, others)
  questions_lib.check_unique_ids([q for own in roles.values() for q in own])
  _check_choices_unseen([*forget, *retain])
  _check_choices_unseen(roles['unknown'])
  _check_unseen('unknown', roles['unknown'])
  for role in ('forget', 'retain'):
    _check_unseen(role, roles[role])
    if require_train:
      _check_has_train(role, roles[role])
  return Splits(
      forget_train=_of_use(forget, 'train'),
      retain_train=_of_use(retain, 'train'),
      evaluation={
          'forget': _with_choices(_of_use(forget, 'train')),
          'forget_paraphrase': _of_reading(_of_use(forget, 'near'), 'choice'),
          'forget_far': _of_reading(_of_use(forget, 'far'), 'choice'),
          **_other_readings(_of_use(forget, 'near', 'far')),
          'retain': _of_reading(_of_use(retain, 'near', 'far'), 'choice'),
          'retain_heldout': _with_choices(heldout),
      },
      text=list(text), unknown=roles['unknown'])


def _of_reading(questions: list[Question], reading: str) -> list[Question]:
  return [q for q in questions if q.reading == reading]


def _other_readings(questions: list[Question]) -> dict[str, list[Question]]:
  """The splits of readings other than `choice`, without empty ones."""
  found = {OF_READING[reading][0]: _of_reading(questions, reading)
           for reading in OF_READING if reading != 'choice'}
  return {name: chosen for name, chosen in found.items() if chosen}


def _with_choices(questions: list[Question]) -> list[Question]:
  return [q for q in questions if len(q.choices) > 1]


def _of_use(questions: list[Question], *uses: str) -> list[Question]:
  return [q for q in questions if q.use in uses]


def plain(text: str) -> str:
  """Normalizes case and white space."""
  return ' '.join(text.split()).casefold()


def _wording(question: Question) -> tuple[str, str]:
  """Prompt and answer with case and white space normalized."""
  return plain(question.prompt), plain(question.answer)


def check_disjoint(
    role: str, questions: list[Question], other_role: str,
    others: list[Question]) -> None:
  """Raises ValueError if two roles share a fact, or prompt and answer."""
  facts = {q.fact: q for q in reversed(questions)}
  wordings = {_wording(q): q for q in reversed(questions)}
  for other in others:
    if other.fact in facts:
      raise ValueError(
          f'{other.source}: fact {other.fact!r} of the {other_role} set is'
          f' also in the {role} set at {facts[other.fact].source}; wanted'
          ' disjoint facts. Remove it from one set.')
    if _wording(other) in wordings:
      raise ValueError(
          f'{other.source}: prompt {other.prompt!r} with answer'
          f' {other.answer!r} of the {other_role} set is also in the {role}'
          f' set at {wordings[_wording(other)].source}; wanted disjoint'
          ' questions. Remove it from one set.')


def _check_unseen(role: str, questions: list[Question]) -> None:
  """Raises ValueError if an evaluation question repeats a trained one."""
  trained = {_wording(q): q for q in questions if q.use == 'train'}
  for question in questions:
    seen = trained.get(_wording(question))
    if question.use != 'train' and seen is not None:
      raise ValueError(
          f'{question.source}: the {role} question of use {question.use!r}'
          f' repeats the prompt {question.prompt!r} and answer of the trained'
          f' question at {seen.source}; wanted a phrasing that is not trained'
          ' on. Reword or remove it.')


def _check_choices_unseen(questions: list[Question]) -> None:
  """Raises ValueError if training sees a wrong choice of `choice_unseen`.

  Args:
    questions: Questions that training may see, with those that ask for them.
  """
  trained = {}
  for question in questions:
    if question.use == 'train':
      for choice in question.choices:
        trained.setdefault((question.relation, plain(choice)), question)
  for question in questions:
    if question.reading != 'choice_unseen':
      continue
    for choice in question.choices:
      seen = trained.get((question.relation, plain(choice)))
      if choice != question.answer and seen is not None:
        raise ValueError(
            f'{question.source}: the choice {choice!r} of a choice_unseen'
            f' question is also a choice of the trained question at'
            f' {seen.source}; wanted wrong choices that no training question of'
            f' the relation {question.relation!r} has. Replace the choice.')


def _check_has_train(role: str, questions: list[Question]) -> None:
  if not any(q.use == 'train' for q in questions):
    source = questions[0].source if questions else 'no file'
    raise ValueError(
        f"The {role} set (from {source}) has no question of use 'train' among"
        f' its {len(questions)} questions; wanted at least one. Mark some'
        " phrasings as 'train'.")
