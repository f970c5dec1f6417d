"""Splits: the role of a file (forget, retain, heldout) times the use.

`forget` = forget x train, `forget_paraphrase` = forget x near, `forget_far` =
forget x far, `retain` = retain x near and far, `retain_heldout` = heldout x
any. Training uses forget x train and retain x train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses

from mansu_jax.data import questions as questions_lib
from mansu_jax.data.readers import text as text_lib

Question = questions_lib.Question

FORGOTTEN = ('forget_paraphrase', 'forget_far')  # Phrasings not trained on.
KEPT = ('retain', 'retain_heldout')
NAMES = ('forget', *FORGOTTEN, *KEPT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
  """All data of a run.

  Attributes:
    forget_train: questions to unlearn.
    retain_train: questions to keep, used in training.
    evaluation: `{split: questions}` with every name of `NAMES`; a split for
      which no file has questions is an empty list.
    text: general text documents.
  """

  forget_train: list[Question]
  retain_train: list[Question]
  evaluation: Mapping[str, list[Question]]
  text: list[text_lib.TextDocument]

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
    require_train: bool = True,
) -> Splits:
  """Reads the files of every role and forms the splits.

  Args:
    forget: question files to unlearn.
    retain: question files to keep.
    heldout: question files that no training sees.
    text: general text files.
    require_train: whether forget and retain must be named and have `train`
      questions; False where nothing is trained, as in an audit.

  Raises:
    ValueError: a file is missing or malformed, a set is empty, two roles
      overlap, or an evaluation question repeats a trained one.
  """
  if require_train:
    _check_named(forget=forget, retain=retain)
  roles = {
      role: [q for path in paths for q in questions_lib.read_questions(path)]
      for role, paths in (
          ('forget', forget), ('retain', retain), ('heldout', heldout))}
  documents = [d for path in text for d in text_lib.read_text(path)]
  return build_splits(**roles, text=documents, require_train=require_train)


def _check_named(**roles: Sequence[str]) -> None:
  for role, paths in roles.items():
    if not paths:
      raise ValueError(
          f'No file is named for the {role} set; wanted at least one question'
          f' file. Give --data_{role}=FILE.')


def build_splits(
    *,
    forget: list[Question],
    retain: list[Question],
    heldout: list[Question],
    text: list[text_lib.TextDocument],
    require_train: bool = True,
) -> Splits:
  """Forms the splits of questions already read; see `read_splits`."""
  roles = {'forget': forget, 'retain': retain, 'heldout': heldout}
  check_disjoint('forget', forget, 'retain', retain)
  check_disjoint('forget', forget, 'heldout', heldout)
  check_disjoint('retain', retain, 'heldout', heldout)
  questions_lib.check_unique_ids([*forget, *retain, *heldout])
  for role in ('forget', 'retain'):
    _check_unseen(role, roles[role])
    if require_train:
      _check_has_train(role, roles[role])
  return Splits(
      forget_train=_of_use(forget, 'train'),
      retain_train=_of_use(retain, 'train'),
      evaluation={
          'forget': _of_use(forget, 'train'),
          'forget_paraphrase': _of_use(forget, 'near'),
          'forget_far': _of_use(forget, 'far'),
          'retain': _of_use(retain, 'near', 'far'),
          'retain_heldout': list(heldout),
      },
      text=list(text))


def _of_use(questions: list[Question], *uses: str) -> list[Question]:
  return [q for q in questions if q.use in uses]


def plain(text: str) -> str:
  """A text up to case and spacing."""
  return ' '.join(text.split()).casefold()


def _wording(question: Question) -> tuple[str, str]:
  """Prompt and answer up to case and spacing."""
  return plain(question.prompt), plain(question.answer)


def check_disjoint(
    role: str, questions: list[Question], other_role: str,
    others: list[Question]) -> None:
  """Raises ValueError when two roles share a fact, or prompt and answer."""
  facts = {q.fact: q for q in reversed(questions)}
  wordings = {_wording(q): q for q in reversed(questions)}
  for other in others:
    if other.fact in facts:
      raise ValueError(
          f'{other.source}: fact {other.fact!r} of the {other_role} set is'
          f' also in the {role} set at {facts[other.fact].source}; wanted'
          ' disjoint facts. Remove it from one of the two.')
    if _wording(other) in wordings:
      raise ValueError(
          f'{other.source}: prompt {other.prompt!r} with answer'
          f' {other.answer!r} of the {other_role} set is also in the {role}'
          f' set at {wordings[_wording(other)].source}; wanted disjoint'
          ' questions. Remove it from one of the two.')


def _check_unseen(role: str, questions: list[Question]) -> None:
  """Raises ValueError when a held-out phrasing is worded as a trained one."""
  trained = {_wording(q): q for q in questions if q.use == 'train'}
  for question in questions:
    seen = trained.get(_wording(question))
    if question.use != 'train' and seen is not None:
      raise ValueError(
          f'{question.source}: the {role} question of use {question.use!r}'
          f' has the prompt {question.prompt!r} and answer of the trained one'
          f' at {seen.source}; wanted a phrasing that training does not see.'
          ' Reword it or drop it.')


def _check_has_train(role: str, questions: list[Question]) -> None:
  if not any(q.use == 'train' for q in questions):
    source = questions[0].source if questions else 'no file'
    raise ValueError(
        f"The {role} set (from {source}) has no question of use 'train' among"
        f' its {len(questions)}; wanted at least one. Mark some phrasings as'
        " 'train'.")
