"""Attacks on the unlearned model: do facts come back that nobody teaches?

An attack fine-tunes the model on half of the forget facts or fewer, or on
unrelated text, or shows these facts in the prompt. It asks about the other
half, in full precision and under each quantizer that needs no calibration. The
attacked model guesses as well, after prompts about other facts. The same attack
on facts that the base never knew is the control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import quant
from mansu_jax import types
from mansu_jax.attacks import fine_tune
from mansu_jax.attacks import plans as plans_lib
from mansu_jax.attacks import taught_facts
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.eval import accuracy
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import files
from mansu_jax.stages.judge import attack_verdict
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import ignorance as ignorance_lib
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import reteaching
from mansu_jax.statistics import recovery
from mansu_jax.statistics import verdict

_PROBES = 1  # Other facts whose prompts are asked for each question.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One attack on one model.

  Attributes:
    plan: The attack.
    lesson: What each step teaches; empty if the attack trains nothing.
    asks: Sides that are asked: `forget`, `unknown` or both.
  """

  plan: plans_lib.Plan
  lesson: list[fine_tune.Batch]
  asks: tuple[str, ...]

  @property
  def name(self) -> str:
    """Name of the attack and of what it asks."""
    return f'attacked_by_{self.plan.name}_{"_".join(self.asks)}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attacked:
  """What attacks found.

  Attributes:
    record: Entries of the record, JSON-able: `attacks` and `attacks_unknown`,
      the accuracy on facts that were not taught,
      `{attack: {precision: [by step]}}`; `attack_setup`, numbers of facts and
      questions, and the base's accuracy, alone and by guessing; and
      `attack_verdict`, see `attack_verdict.judge`. If nothing is attacked, only
      the last has entries.
    asked: What was asked and answered, by side.
  """

  record: dict[str, Any]
  asked: Mapping[str, attack_verdict.Asked]


class Attacks:
  """The attacks of a run: what they teach and ask.

  Attributes:
    sides: `forget`, and `unknown` if there are facts that the base never knew.
    runs: Every fine-tuning, in order.
    tasks: Packed questions of each side, followed by its probes: the same
      choices after prompts about other facts.
    shown: The same after solved questions, by side and their number.
    scorer: Scores them.
    views: Names of the precisions at which the model is asked.
    benign_on: What benign fine-tuning trains on: `text` or `retain`.
  """

  def __init__(
      self, options: run_config.EvalConfig, data: run_config.DataConfig,
      inputs: inputs_lib.Inputs, model: loading.LoadedModel,
      schemes: Sequence[str], *, seed: int):
    """Draws the facts and packs all lessons and questions.

    Args:
      options: Attacks and sizes.
      data: Chat form, and length of text windows.
      inputs: Data of the run.
      model: The base, or its shapes.
      schemes: Quantizers of the run.
      seed: Seed of all draws.

    Raises:
      reteaching.TooFewFacts: There are too few forget facts.
    """
    self.views = ['fp', *(s for s in schemes if s not in quant.CALIBRATED)]
    self.sides = {'forget': reteaching.forgotten(options, inputs, seed)}
    unknown = reteaching.never_known(options, inputs, seed)
    if unknown is not None:
      self.sides['unknown'] = unknown
    self.tasks: dict[str, accuracy.Task] = {}
    self.shown: dict[tuple[str, int], accuracy.Task] = {}
    self._owners: dict[str, np.ndarray] = {}
    most = model.config.max_position
    build = lambda questions: accuracy.build_task(
        questions, model.tokenizer, chat=data.chat,
        token_budget=options.batch_tokens, max_length=most)
    for name, side in self.sides.items():
      probes, self._owners[name] = ignorance_lib.readable_probes(
          side.questions, model.tokenizer, chat=data.chat, count=_PROBES,
          max_length=most)
      self.tasks[name] = build([*side.questions, *probes])
    self.scorer = evaluation.make_scorer(model.config)
    self.benign_on = 'text' if inputs.splits.text else 'retain'
    self.runs = self._make_runs(options, data, inputs, model, seed)
    for run in self.runs:
      for count in run.plan.steps if not run.plan.trains else ():
        (side,) = run.asks
        self.shown[side, count] = self.tasks[side] if not count else build(
            self._after_examples(
                side, count, model, chat=data.chat, seed=seed))

  def _make_runs(self, options, data, inputs, model, seed) -> list[Run]:
    """Relearning teaches each side its own half; benign runs ask both."""
    plans = plans_lib.of_options(options)
    of_questions = lambda questions: fine_tune.lesson_of_questions(
        questions, model.tokenizer, chat=data.chat)
    batches = lambda *lessons: fine_tune.batches(
        lessons, options.attack_steps, seed)
    taught = dict.fromkeys(
        (side, plan.share) for plan in plans if plan.trains
        and plan.kind != 'benign' for side in self.sides)
    lessons = dict(zip(taught, batches(*(
        of_questions(self.sides[side].taught_share(share, seed))
        for side, share in taught)) if taught else ()))
    if any(plan.kind == 'benign' for plan in plans):
      splits = inputs.splits
      (unrelated,) = batches(fine_tune.lesson_of_text(
          splits.text, model.tokenizer, window=data.text_window)
                                     if splits.text else of_questions(
                                         splits.retain_train))
    out = []
    for plan in plans:
      if plan.kind == 'benign':
        out.append(Run(plan=plan, lesson=unrelated, asks=tuple(self.sides)))
      else:
        out += [Run(plan=plan, lesson=lessons.get((side, plan.share), []),
                    asks=(side,)) for side in self.sides]
    return out

  def _after_examples(
      self, side: str, count: int, model: loading.LoadedModel, *, chat: bool,
      seed: int) -> list[questions_lib.Question]:
    """The questions and probes of a side after solved ones that fit the model.

    Prompts with special tokens, such as chat turns, stay as they are.
    """
    plain, most = self.tasks[side].questions, model.config.max_position
    made = taught_facts.shown(plain, self.sides[side].taught, count, seed)
    encoded = tokenization.encode_questions(made, model.tokenizer, chat=chat)
    return [new if one.length <= most and not tokenization.is_marked(
        old.prompt, model.tokenizer) else old
            for old, new, one in zip(plain, made, encoded)]

  def ask(
      self, params: types.Params, side: str, examples: int | None = None
  ) -> str:
    """Asks one side; a digit for each question of its task, 1 if right.

    Args:
      params: The attacked model.
      side: Whom to ask about.
      examples: Solved questions before each, of an attack that shows them.
    """
    task = self.tasks[side] if examples is None else self.shown[side, examples]
    scores = accuracy.score(self.scorer, params, task)
    return ''.join(map(str, scores.correct.astype(int)))

  def probed(self, side: str) -> np.ndarray:
    """Whether the guesses of each question are measured, [n] bool."""
    return np.bincount(self._owners[side], minlength=len(
        self.sides[side].questions)) > 0

  def answers(self, side: str, asked: str) -> recovery.Answers:
    """What `ask` found, with the guesses of each question."""
    questions = self.sides[side].questions
    right = np.array(list(asked)) == '1'
    return recovery.Answers(right[:len(questions)], ignorance_lib.levels(
        questions, self._owners[side], right[len(questions):]))


def measure(
    options: run_config.EvalConfig, data: run_config.DataConfig,
    inputs: inputs_lib.Inputs, quantize: quantizers.Quantizers,
    model: loading.LoadedModel, unlearned: types.Params, *, seed: int,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> Attacked:
  """Attacks the unlearned model.

  Args:
    options: Attacks, their steps and rates, sizes of the evaluation.
    data: Chat form, and length of text windows.
    inputs: Data of the run.
    quantize: Quantizers of the run.
    model: The base.
    unlearned: Full params after unlearning; not changed.
    seed: Seed of the taught facts, their order and the bootstrap.
    cache: Keeps each attack for a resumed run.
  """
  if not options.attacks:
    return not_measured('--eval_attacks= skips the attacks')
  try:
    attacks = Attacks(
        options, data, inputs, model, quantize.names, seed=seed)
  except reteaching.TooFewFacts as error:
    return not_measured(str(error))
  views = {name: view for name, view in quantize.views().items()
           if name in attacks.views}
  resampling = dict(resamples=options.bootstrap, seed=seed)
  base = cache.get_or_compute_json('attacked_base', lambda: {
      side: attacks.ask(model.params, side) for side in attacks.sides},
                                   of_base=True)
  answers: dict[str, Any] = {side: {} for side in attacks.sides}
  losses: dict[str, Any] = {side: {} for side in attacks.sides}
  for i, run in enumerate(attacks.runs, 1):
    logging.info('attack %d of %d: %s, asked: %s', i, len(attacks.runs),
                 run.plan.name, ', '.join(run.asks))
    found = cache.get_or_compute_json(
        run.name, lambda: _attack(attacks, run, views, model, unlearned, seed))
    if found[-1]['step'] < run.plan.steps[-1]:
      logging.warning('The attack %s diverged after step %d.', run.plan.name,
                      found[-1]['step'])
    for side in run.asks:
      answers[side][run.plan.name] = {precision: {
          step['step']: attacks.answers(side, step[side][precision])
          for step in found} for precision in views}
      losses[side][run.plan.name] = [
          step['loss'] for step in found if step.get('loss') is not None]
  asked = {side: attack_verdict.Asked(
      questions=attacks.sides[side].questions, answers=answers[side],
      base=attacks.answers(side, base[side]), losses=losses[side],
      probed=attacks.probed(side))
           for side in attacks.sides}
  setup = {'benign_on': attacks.benign_on} | {
      name: side.describe() | asked[name].describe()
      for name, side in attacks.sides.items()}
  return Attacked(asked=asked, record={
      'attack_setup': setup, **attack_verdict.entries(asked, **resampling)})


def _attack(
    attacks: Attacks, run: Run, views: quantizers.Views,
    model: loading.LoadedModel, unlearned: types.Params, seed: int
) -> list[dict[str, Any]]:
  """Answers `{side: {precision: found by ask}}` at each measured step."""
  if not run.plan.trains:
    out = [{'step': count} | {side: {} for side in run.asks}
           for count in run.plan.steps]
    for precision, view in views.items():
      viewed = view(unlearned)
      for found in out:
        for side in run.asks:
          found[side][precision] = attacks.ask(viewed, side, found['step'])
    return out

  def ask(params):
    out: dict[str, Any] = {side: {} for side in run.asks}
    for precision, view in views.items():
      viewed = view(params)
      for side in run.asks:
        out[side][precision] = attacks.ask(viewed, side)
    return out

  return fine_tune.run(
      model.config, unlearned, run.lesson, ask, steps=run.plan.steps,
      learning_rate=run.plan.learning_rate, adapters=run.plan.adapters,
      seed=seed)


def not_measured(reason: str) -> Attacked:
  """What is found if nothing is attacked; the reason is a clause."""
  return Attacked(asked={}, record={
      'attacks': {}, 'attacks_unknown': {}, 'attack_setup': {},
      'attack_verdict': verdict.missing(reason)})


def write(found: Attacked, root: pathlib.Path) -> None:
  """Writes `attacks.jsonl`: the answers to each question of each side.

  A line is {side, id, fact, relation, reading, prompt, answer, choices,
  base, attacks}. `base` has whether the base answers it right, and how often it
  does after prompts about other facts; `attacks` has the same of the attacked
  model, {attack: {precision: {step: ...}}}. No file is written if nothing is
  attacked.
  """
  lines = [results.line({'side': side}, question, {
      'choices': list(question.choices)}, answers)
           for side, asked in found.asked.items()
           for question, answers in zip(asked.questions, asked.by_question())]
  if lines:
    files.write_text(root / 'attacks.jsonl', ''.join(lines))
