"""Relearning attack: how soon do forgotten facts come back?

The attack fine-tunes all weights of an unlearned model on half of the forgotten
facts, in their training phrasings. It measures accuracy on far phrasings of the
other half. Fine-tuning never shows these facts, so whatever comes back was
still in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.unlearn import losses

LEARNING_RATE = 2e-5
MEASURED_STEPS = (0, 2, 5, 10, 20)
_BATCH = 16  # Sequences per step.
_SPLIT = 'forget_far'


class TaughtSequences(NamedTuple):
  """n sequences of a prompt and its right answer, padded on the right."""

  tokens: np.ndarray  # [n, T] int32
  is_answer: np.ndarray  # [n, T] bool


def choose_taught_facts(facts: Iterable[str], seed: int) -> set[str]:
  """Draws the half of the forgotten facts that the attack teaches again.

  Args:
    facts: Names of forgotten facts; repetitions are ignored.
    seed: Seed of the draw.

  Returns:
    Half of the facts, rounded down.
  """
  facts = sorted(set(facts))
  return set(np.random.default_rng(seed).permutation(facts)[:len(facts) // 2])


def encode(
    questions: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, *, chat: bool = False
) -> TaughtSequences:
  """Encodes questions with their right answers.

  Args:
    questions: n questions.
    tokenizer: See `tokenization`.
    chat: Whether prompts use the tokenizer's chat template.

  Returns:
    The sequences, in the order of the questions.

  Raises:
    ValueError: See `tokenization.encode_questions`.
  """
  rows = [(e.prompt, e.choices[q.answer_index]) for q, e in zip(
      questions, tokenization.encode_questions(
          questions, tokenizer, chat=chat))]
  width = max(len(prompt) + len(answer) for prompt, answer in rows)
  tokens = np.zeros((len(rows), width), np.int32)
  is_answer = np.zeros((len(rows), width), bool)
  for i, (prompt, answer) in enumerate(rows):
    end = len(prompt) + len(answer)
    tokens[i, :end] = [*prompt, *answer]
    is_answer[i, len(prompt):end] = True
  return TaughtSequences(tokens, is_answer)


@functools.partial(
    jax.jit, static_argnames=('config', 'tx'),
    donate_argnames=('params', 'state'))
def _train_step(config, tx, params, state, tokens, is_answer):
  """One step on the mean over sequences of the answers' summed NLL."""
  def loss(params):
    hidden = decoder.forward(config, params, tokens[:, :-1])
    nll = losses.token_nll(decoder.unembed(params, hidden), tokens[:, 1:])
    return jnp.sum(nll * is_answer[:, 1:]) / len(tokens)

  value, grads = jax.value_and_grad(loss)(params)
  updates, state = tx.update(grads, state, params)
  return optax.apply_updates(params, updates), state, value


def relearn(
    config: model_config.ModelConfig, params: types.Params,
    taught: TaughtSequences,
    measure: Callable[[types.Params], dict[str, Any]], *,
    learning_rate: float = LEARNING_RATE, seed: int = 0
) -> list[dict[str, Any]]:
  """Fine-tunes a model by Adam and measures it on the way.

  Args:
    config: The model's config.
    params: The unlearned model; not changed.
    taught: Sequences to teach.
    measure: Maps params to JSON-able measurements.
    learning_rate: Constant learning rate of Adam.
    seed: Seed of the order of sequences.

  Returns:
    `step` and the measurements at each of `MEASURED_STEPS`.
  """
  tx = optax.adam(learning_rate)
  params = jax.tree.map(jnp.copy, params)  # The steps donate their input.
  state = tx.init(params)
  rng, out, order = np.random.default_rng(seed), [], np.zeros(0, int)
  for step in range(MEASURED_STEPS[-1] + 1):
    if step in MEASURED_STEPS:
      out.append({'step': step} | measure(params))
    if order.size < _BATCH:
      order = np.append(order, rng.permutation(len(taught.tokens)))
    rows, order = order[:_BATCH], order[_BATCH:]
    params, state, _ = _train_step(
        config, tx, params, state, taught.tokens[rows],
        taught.is_answer[rows])
  return out


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
    facts = choose_taught_facts((q.fact for q in train), seed)
    _check_far_questions(far, facts)
    self._config, self._seed = model.config, seed
    self._taught = encode(
        [q for q in train if q.fact in facts], model.tokenizer,
        chat=data.chat)
    self._evaluator = evaluation.Evaluator(
        options, data, dataclasses.replace(
            inputs, heldout_text=[], evaluation={_SPLIT: far}), model)
    self._is_taught = np.array(
        [q.fact in facts for q in self._evaluator.questions])

  def measure(self, params: types.Params) -> dict[str, Any]:
    """Accuracy on far phrasings.

    Args:
      params: Model to measure.

    Returns:
      Accuracy on facts that are `taught` and `not_taught`, and `right`: one
      digit per question, 1 for a right answer.
    """
    correct = self._evaluator(params).scores.correct
    return {'taught': float(correct[self._is_taught].mean()),
            'not_taught': float(correct[~self._is_taught].mean()),
            'right': ''.join(map(str, correct.astype(int)))}

  def __call__(
      self, params: types.Params, *, learning_rate: float = LEARNING_RATE
  ) -> list[dict[str, Any]]:
    """Attacks a model.

    Args:
      params: The unlearned model; not changed.
      learning_rate: See `relearn`.

    Returns:
      `step` and `measure` at each of `MEASURED_STEPS`.
    """
    return relearn(
        self._config, params, self._taught, self.measure,
        learning_rate=learning_rate, seed=self._seed)
