"""The outputs of a run: exported model, answers, samples, circuit, record."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.eval import generation
from mansu_jax.eval import weight_change
from mansu_jax.models import cached
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import verdict
from mansu_jax.stages.prepare import inputs as inputs_lib

NEW_TOKENS = 12  # Maximum length of a sample.


def write_answers(
    evaluator: evaluation.Evaluator, measured: verdict.Measured,
    root: pathlib.Path) -> None:
  """Writes `answers.jsonl`: each model's answer to each question.

  A line is {split, id, fact, relation, prompt, answer, choices, models}, where
  `models` is {model: {precision: {choice, correct, margin}}}: the likeliest
  choice, whether it is correct, and the log-probability of the right answer
  less that of the best wrong one, in nats.
  """
  lines = []
  for split, rows in evaluator.slices.items():
    for i in range(rows.start, rows.stop):
      question, models = evaluator.questions[i], {}
      for (name, precision), found in measured.items():
        models.setdefault(name, {})[precision] = {
            'choice': question.choices[int(found.scores.logprob[i].argmax())],
            'correct': bool(found.scores.correct[i]),
            'margin': round(float(found.scores.margin[i]), 4)}
      lines.append(json.dumps({
          'split': split, 'id': question.id, 'fact': question.fact,
          'relation': question.relation, 'prompt': question.prompt,
          'answer': question.answer, 'choices': list(question.choices),
          'models': models}, ensure_ascii=False) + '\n')
  files.write_text(root / 'answers.jsonl', ''.join(lines))


def samples(
    inputs: inputs_lib.Inputs, quantize: quantizers.Quantizers,
    model: loading.LoadedModel, unlearned: types.Params, *, limit: int,
    seed: int, chat: bool,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> list[dict[str, Any]]:
  """Free answers before and after unlearning, and at the first quantizer.

  Args:
    inputs: Questions of the run.
    quantize: The run's quantizers.
    model: The base.
    unlearned: Full params after unlearning.
    limit: Questions per split.
    seed: Seed of the choice of questions.
    chat: Whether questions are asked in the chat template.
    cache: Cache of finished stages.
  """
  chosen = asked_freely(inputs, limit, seed=seed)
  return cache.get_or_compute_json('samples', lambda: _complete(
      chosen, quantize, model, unlearned, chat=chat))


def _complete(
    chosen: Sequence[tuple[str, questions_lib.Question]],
    quantize: quantizers.Quantizers, model: loading.LoadedModel,
    unlearned: types.Params, *, chat: bool) -> list[dict[str, Any]]:
  """The record's `samples` of some questions with their splits."""
  if not chosen:
    return []
  scheme = quantize.names[0]
  variants = {
      'base': model.params, 'unlearned': unlearned,
      f'unlearned_{scheme}': quantize(scheme, unlearned)}
  generator = make_generator(model.config)
  prompts = [q.prompt for _, q in chosen]
  texts = {name: generation.complete(
      generator, params, prompts, model.tokenizer,
      max_new_tokens=NEW_TOKENS, chat=chat)
           for name, params in variants.items()}
  return [
      {'split': split, 'id': q.id, 'prompt': q.prompt, 'answer': q.answer,
       'continuations': {name: texts[name][i] for name in variants}}
      for i, (split, q) in enumerate(chosen)]


def asked_freely(
    inputs: inputs_lib.Inputs, limit: int, *, seed: int
) -> list[tuple[str, questions_lib.Question]]:
  """At most `limit` questions of each split but `forget`, with the split."""
  return [
      (split, q) for split, questions in inputs.evaluation.items()
      if split != 'forget' and limit
      for q in inputs_lib.thin(questions, limit, seed)]


def make_generator(config: model_config.ModelConfig) -> generation.Generator:
  """A generator for models of one config."""
  return generation.Generator(
      functools.partial(cached.prefill, config),
      functools.partial(cached.extend, config), decoder.unembed)


def describe_circuit(found: attribution.Found | None) -> dict[str, Any]:
  """The record's `circuit`; {} without one."""
  if found is None:
    return {}
  by_layer = {k: found.circuit[k].sum(1).tolist() for k in found.circuit.kinds}
  return found.report | {'by_layer': by_layer}


def make_record(
    *, config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    quantize: quantizers.Quantizers, model: loading.LoadedModel,
    found: attribution.Found | None, evaluator: evaluation.Evaluator,
    measured: verdict.Measured, structure: dict[str, Any],
    unlearned: types.Params, answers_in_words: list[dict[str, Any]],
    stages: list[dict[str, Any]],
    changes: dict[str, weight_change.Change] | None = None,
    training: dict[str, Any] | None = None,
    earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
  """The JSON-able `record.json` of a run, which the report renders.

  Args:
    config: the run's, which the record holds.
    inputs: questions and texts.
    quantize: the run's quantizers.
    model: the base.
    found: the circuit, or None.
    evaluator: the scored questions.
    measured: from `evaluation.measure_all`.
    structure: from `erasure.measure` or `erasure.not_measured`.
    unlearned: full params after unlearning.
    answers_in_words: from `samples`.
    stages: of the run's clock.
    changes: from `weight_change.compare`; None computes it.
    training: from `describe_training`; None if nothing was trained.
    earlier: environments in which a resumed run ran before.

  Returns:
    The verdict and its `properties`; accuracy, PTQ gaps and perplexity; how
    much of the edit survives each quantizer; the weights that moved; structural
    measures, circuit and training history; sample answers; and the model, data,
    config, environment and stages behind them.
  """
  answers = verdict.Answers(
      evaluator, measured, resamples=config.eval.bootstrap, seed=config.seed)
  precisions = ('fp', *quantize.names)
  splits = list(evaluator.slices)
  gaps = verdict.gaps(answers, quantize.names)
  shares, details = quantize.survival(model.params, unlearned)
  changes = changes or weight_change.compare(model.params, unlearned)
  properties = {
      'F': verdict.property_f(answers, precisions),
      'R': verdict.property_r(answers, precisions),
      'Q': verdict.property_q(gaps),
      'S': structure['S']}
  return {
      'verdict': verdict.overall(properties), 'properties': properties,
      'accuracy': verdict.accuracies(answers, splits, precisions),
      'accuracy_by_relation': verdict.by_group(
          answers, splits, precisions, answers.relations),
      'accuracy_by_form': verdict.by_group(
          answers, splits, precisions, answers.forms),
      **gaps, **verdict.perplexities(measured, precisions),
      'survival': shares, 'survival_details': details,
      'movement': weight_change.describe(changes),
      **{k: v for k, v in structure.items() if k != 'S'},
      'circuit': describe_circuit(found), **(training or describe_training()),
      'samples': answers_in_words, 'quantizers': quantize.describe(),
      **_describe_run(
          config, model, evaluator.questions, stages,
          data=inputs_lib.describe(inputs), earlier=earlier,
          weights=tree_paths.count(model.params))}


def make_attribution_record(
    *, config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    model: loading.LoadedModel, scored: attribution.Scored,
    found: attribution.Found, stages: list[dict[str, Any]]) -> dict[str, Any]:
  """The JSON-able record of `--mode=attribute`, which the report renders.

  Args:
    config: Configuration of the run, which the record holds.
    inputs: Questions of the run.
    model: The model.
    scored: The pairs and their scores.
    found: The circuit.
    stages: Stages of the run's clock.
  """
  return {
      'circuit': found.report, 'metric': scored.metric(),
      **_describe_run(config, model, inputs.splits.forget_train, stages,
                      data={'sha256': inputs.hashes})}


def _describe_run(
    config: run_config.RunConfig, model: loading.LoadedModel,
    questions: Sequence[questions_lib.Question], stages: list[dict[str, Any]],
    *, data: dict[str, Any], earlier: Sequence[dict[str, Any]] = (),
    **of_model: Any) -> dict[str, Any]:
  """The entries that every record has: where its figures come from.

  Args:
    config: Configuration of the run.
    model: The base.
    questions: Questions that the run asks.
    stages: Stages of the run's clock.
    data: The entry `data`.
    earlier: Environments in which a resumed run ran before.
    **of_model: Further fields of the entry `model`.
  """
  return {
      'model': model.source | of_model | {
          'config': dataclasses.asdict(model.config)},
      'tokenization': _describe_tokenization(
          model.tokenizer, questions, chat=config.data.chat),
      'data': data, 'config': dataclasses.asdict(config),
      'environment': environment.describe() | (
          {'earlier': list(earlier)} if earlier else {}),
      'stages': stages}


def _describe_tokenization(
    tokenizer: types.Tokenizer | None,
    questions: Sequence[questions_lib.Question], *, chat: bool
) -> dict[str, Any]:
  """The record's `tokenization`; {} without a tokenizer.

  In chat form it has `asked_as_written`: the number of questions that hold
  special tokens already and are therefore not wrapped.
  """
  if not tokenizer:
    return {}
  found = tokenization.describe(tokenizer, chat=chat)
  if chat:
    found['asked_as_written'] = sum(
        tokenization.is_marked(q.prompt, tokenizer) for q in questions)
  return found


def describe_training(
    history: dict[str, np.ndarray] | None = None,
    kl: dict[str, Any] | None = None, swapped: dict[str, int] | None = None
) -> dict[str, Any]:
  """The record's fields about training, empty if nothing was trained.

  Args:
    history: from `training.unlearn`.
    kl: from `retain_kl.measure`.
    swapped: the counts of `swapped_subjects.spans`.
  """
  return {
      'retain_kl': kl or {}, 'swapped_prompts': swapped,
      'history': {k: v.tolist() for k, v in (history or {}).items()}}
