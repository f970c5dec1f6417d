"""Chooses what attacks teach again and what they ask, and checks their flags.

At most half of the forget facts are taught in their train phrasings, and the
other half is asked in near and far ones. The same is done with facts that the
base never knew (`--data_unknown`), as a control.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from mansu_jax.attacks import plans
from mansu_jax.attacks import taught_facts
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.stages.prepare import inputs as inputs_lib

Question = questions_lib.Question

_READINGS = ('choice_unseen', 'choice')  # The first one that has questions.
_LEAST = 2  # Facts on each side, to resample.


class TooFewFacts(ValueError):
  """The facts do not suffice to teach some and ask others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
  """The questions of one set, forgotten or never known.

  Attributes:
    taught: Train questions about the facts to teach.
    asked: Near and far questions about other facts, and how many of them lost
      a choice or were left out because of taught answers.
    reading: Reading of the asked questions.
  """

  taught: list[Question]
  asked: taught_facts.Untaught
  reading: str

  @property
  def questions(self) -> list[Question]:
    """The asked questions."""
    return self.asked.questions

  def taught_share(self, share: float, seed: int) -> list[Question]:
    """Train questions about a share of all facts, at most half of them.

    Of facts that share answers, it is the least share with some.
    """
    count = len({q.fact for q in self.taught})
    least = max(1, math.floor(round(share / plans.HALF * count, 6)))
    chosen = next(filter(None, (
        taught_facts.choose_of(self.taught, seed, most / count)
        for most in range(least, count + 1))))
    return [q for q in self.taught if q.fact in chosen]

  def describe(self) -> dict[str, Any]:
    """JSON-able numbers for the record."""
    return {
        'taught_facts': len({q.fact for q in self.taught}),
        'asked_facts': len({q.fact for q in self.questions}),
        'questions': len(self.questions), 'narrowed': sum(
            q.id in self.asked.narrowed for q in self.questions),
        'dropped': self.asked.dropped, 'reading': self.reading,
        'chance': sum(
            q.chance for q in self.questions) / len(self.questions)}


def forgotten(
    options: run_config.EvalConfig, inputs: inputs_lib.Inputs, seed: int
) -> Side:
  """The side of the forget set.

  Raises:
    TooFewFacts: See the message.
  """
  return _side(
      'forget', inputs.splits.forget_train, _forget_questions(inputs),
      options.attack_questions, seed)


def _forget_questions(
    inputs: inputs_lib.Inputs) -> dict[str, list[Question]]:
  """The questions about forgotten facts, by reading."""
  return {
      reading: [q for split in splits_lib.OF_READING[reading]
                for q in inputs.evaluation.get(split, ())]
      for reading in _READINGS}


def _first_reading(asked: dict[str, list[Question]]) -> str:
  return next((name for name, found in asked.items() if found), 'choice')


def never_known(
    options: run_config.EvalConfig, inputs: inputs_lib.Inputs, seed: int
) -> Side | None:
  """The side of `--data_unknown`; None without it.

  It is asked in the reading of the forget set where it has one.

  Raises:
    TooFewFacts: See the message.
  """
  questions = inputs.splits.unknown
  if not questions:
    return None
  train = [q for q in questions if q.use == 'train']
  asked = {
      reading: [q for q in questions
                if q.use != 'train' and q.reading == reading]
      for reading in _READINGS}
  same = _first_reading(_forget_questions(inputs))
  if asked[same]:
    asked = {same: asked[same]}
  return _side('unknown', train, asked, options.attack_questions, seed)


def _side(
    role: str, train: Sequence[Question], asked: dict[str, list[Question]],
    limit: int, seed: int) -> Side:
  """Divides the facts of one set; asks the first reading with questions."""
  reading = _first_reading(asked)
  facts = taught_facts.choose_of([*train, *asked[reading]], seed)
  taught = [q for q in train if q.fact in facts]
  others = taught_facts.untaught(asked[reading], taught)
  chosen = inputs_lib.thin(others.questions, limit, seed)
  others = others._replace(questions=chosen)
  sides = {'train questions about taught facts': taught,
           'near and far questions about other facts': others.questions}
  for what, found in sides.items():
    count = len({q.fact for q in found})
    if count < _LEAST:
      raise TooFewFacts(
          f'the {role} set has {what} for {count} facts; wanted at least'
          f' {_LEAST} ({others.dropped} questions are left out because all'
          f' their wrong choices are taught answers). Give --data_{role} more'
          ' facts with train and near or far questions')
  return Side(taught=taught, asked=others, reading=reading)


def check(
    options: run_config.EvalConfig, inputs: inputs_lib.Inputs, seed: int
) -> None:
  """Checks the attacks of a run before any long work.

  A forget set with too few facts is no error: the attacks are then left out.

  Args:
    options: Kinds, learning rates and steps.
    inputs: Data of the run.
    seed: Seed of the run.

  Raises:
    ValueError: As `plans.make`; benign fine-tuning has nothing to train on; or
      --data_unknown has too few facts.
  """
  made = plans.of_options(options)
  if any(plan.kind == 'benign' for plan in made) and not (
      inputs.splits.text or inputs.splits.retain_train):
    raise ValueError(
        f'--eval_attacks={",".join(options.attacks)} has benign, but there is'
        ' nothing to fine-tune on; wanted --data_text, or train questions of'
        ' --data_retain. Give one of them, or leave benign out.')
  if made:
    try:
      never_known(options, inputs, seed)
    except TooFewFacts as error:
      raise ValueError(f'--data_unknown: {error}.') from error
