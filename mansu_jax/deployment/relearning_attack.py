"""Relearning attack: how soon do forgotten facts come back?

The attack fine-tunes all weights of an unlearned model on half of the forgotten
facts, in their training phrasings. It measures accuracy on far phrasings of the
other half. Fine-tuning never shows these facts, so whatever comes back was
still in the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mansu_jax import types
from mansu_jax.attacks import fine_tune
from mansu_jax.attacks import taught_facts
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.eval import accuracy
from mansu_jax.models.io import loading
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.prepare import inputs as inputs_lib

LEARNING_RATE = 2e-5
MEASURED_STEPS = (0, 2, 5, 10, 20)
_SPLIT = 'forget_far'


def choose_taught_facts(facts: Iterable[str], seed: int) -> set[str]:
  """Draws the half of the forgotten facts that the attack teaches again.

  Args:
    facts: Names of forgotten facts; repetitions are ignored.
    seed: Seed of the draw.

  Returns:
    Half of the facts, rounded down.
  """
  return taught_facts.choose(((fact, fact) for fact in facts), seed)


def _check_far_questions(
    far: Sequence[questions_lib.Question], taught_facts: set[str]) -> None:
  """Checks that far questions ask both taught and untaught facts."""
  num_taught = sum(q.fact in taught_facts for q in far)
  if not 0 < num_taught < len(far):
    raise ValueError(
        f'Of the {len(far)} far questions on the forget set, {num_taught} ask a'
        f' fact that relearning teaches ({len(taught_facts)} facts); wanted'
        ' questions about both taught and untaught facts. Give --data_forget'
        ' questions with "use": "train" and "far" about several facts, or'
        ' another seed.')


class RelearningAttack:
  """The relearning attack on the forget set of one run.

  All models are taught the same sequences in the same order.
  """

  def __init__(
      self, options: run_config.EvalConfig, data: run_config.DataConfig,
      inputs: inputs_lib.Inputs, model: loading.LoadedModel, *, seed: int):
    """Chooses the taught facts and packs the questions.

    Args:
      options: Options of scoring.
      data: Chat form of the questions.
      inputs: Data of the run.
      model: Base model.
      seed: Seed of the choice of taught facts and of their order.

    Raises:
      ValueError: The run lacks far questions on taught or on other facts.
    """
    train, far = inputs.splits.forget_train, inputs.evaluation.get(_SPLIT, [])
    facts = taught_facts.choose_of(train, seed)
    _check_far_questions(far, facts)
    self._config, self._seed = model.config, seed
    (self._taught,) = fine_tune.batches([fine_tune.lesson_of_questions(
        [q for q in train if q.fact in facts], model.tokenizer,
        chat=data.chat)], MEASURED_STEPS[-1], seed)
    self._task = accuracy.build_task(
        far, model.tokenizer, chat=data.chat,
        token_budget=options.batch_tokens,
        max_length=model.config.max_position)
    self._scorer = evaluation.make_scorer(model.config)
    self._is_taught = np.array([q.fact in facts for q in far])

  def measure(self, params: types.Params) -> dict[str, Any]:
    """Accuracy on far phrasings.

    Args:
      params: Model to measure.

    Returns:
      Accuracy on facts that are `taught` and `not_taught`, and `right`: one
      digit per question, 1 for a right answer.
    """
    correct = accuracy.score(self._scorer, params, self._task).correct
    return {'taught': float(correct[self._is_taught].mean()),
            'not_taught': float(correct[~self._is_taught].mean()),
            'right': ''.join(map(str, correct.astype(int)))}

  def __call__(
      self, params: types.Params, *, learning_rate: float = LEARNING_RATE
  ) -> list[dict[str, Any]]:
    """Attacks a model.

    Args:
      params: The unlearned model; not changed.
      learning_rate: Constant learning rate of Adam.

    Returns:
      `step` and `measure` at each of `MEASURED_STEPS`.
    """
    return fine_tune.run(
        self._config, params, self._taught, self.measure, steps=MEASURED_STEPS,
        learning_rate=learning_rate, seed=self._seed)
