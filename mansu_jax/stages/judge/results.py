"""The outputs of a run: exported model, answers, samples, circuit, record."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
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
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.judge import answers as answers_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import verdict
from mansu_jax.stages.prepare import generating
from mansu_jax.stages.prepare import inputs as inputs_lib

NEW_TOKENS = 12  # Maximum length of a sample.


def write_answers(
    evaluator: evaluation.Evaluator, measured: answers_lib.Measured,
    root: pathlib.Path) -> None:
  """Writes `answers.jsonl`: each model's answer to each question.

  A line is {split, id, fact, relation, reading, prompt, answer, choices,
  models}, where `models` is {model: {precision: {choice, correct, margin,
  ignorance}}}: the likeliest choice, whether it is correct, the log-probability
  of the right answer less that of the best wrong one, in nats, and how often
  the model is right without knowing the fact.

  Args:
    evaluator: of the run's questions.
    measured: from `evaluation.measure_all`.
    root: an existing folder.
  """
  lines = []
  for split, rows in evaluator.slices.items():
    for i in range(rows.start, rows.stop):
      question, models = evaluator.questions[i], {}
      for (name, precision), found in measured.items():
        models.setdefault(name, {})[precision] = {
            'choice': question.choices[int(found.scores.logprob[i].argmax())],
            'correct': bool(found.scores.correct[i]),
            'margin': round(float(found.scores.margin[i]), 4),
            'ignorance': float(found.ignorance[i])}
      lines.append(line(
          {'split': split}, question, {'choices': list(question.choices)},
          {'models': models}))
  files.write_text(root / 'answers.jsonl', ''.join(lines))


def line(
    first: dict[str, Any], question: questions_lib.Question,
    *rest: dict[str, Any]) -> str:
  """A question and what was measured on it, as a line of JSON."""
  entry = first | {name: getattr(question, name) for name in (
      'id', 'fact', 'relation', 'reading', 'prompt', 'answer')}
  for part in rest:
    entry |= part
  return json.dumps(entry, ensure_ascii=False) + '\n'


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
  generator = generating.make(model.config)
  prompts = [q.prompt for _, q in chosen]
  texts = {name: generation.complete(
      generator, params, prompts, model.tokenizer,
      max_new_tokens=NEW_TOKENS, stop_ids=model.end_tokens, chat=chat)
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


def describe_circuit(found: attribution.Found | None) -> dict[str, Any]:
  """The record's `circuit`; {} without one."""
  if found is None:
    return {}
  by_layer = {k: found.circuit[k].sum(1).tolist() for k in found.circuit.kinds}
  return found.report | {'by_layer': by_layer}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
  """What a run asks, of whom.

  Attributes:
    config: the run's, which the record holds.
    inputs: questions and texts.
    quantize: the run's quantizers.
    model: the base.
    evaluator: the scored questions.
    found: the circuit, or None.
  """

  config: run_config.RunConfig
  inputs: inputs_lib.Inputs
  quantize: quantizers.Quantizers
  model: loading.LoadedModel
  evaluator: evaluation.Evaluator
  found: attribution.Found | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
  """What the stages measured.

  Attributes:
    measured: from `evaluation.measure_all`.
    recalled: readings of generated answers, from `recall.measure`.
    hidden: from `hidden_share.measure`.
    attacked: record of `attacks.measure`.
    structure: from `erasure.measure` or `erasure.not_measured`.
    samples: from `samples`.
    changes: from `weight_change.compare`; None computes it.
    training: from `describe_training`; {} if nothing was trained.
  """

  measured: answers_lib.Measured
  recalled: dict[str, answers_lib.Reading]
  hidden: dict[str, Any]
  attacked: dict[str, Any]
  structure: dict[str, Any]
  samples: list[dict[str, Any]]
  changes: dict[str, weight_change.Change] | None = None
  training: dict[str, Any] = dataclasses.field(default_factory=dict)


def make_record(
    job: Job, findings: Findings, unlearned: types.Params,
    stages: list[dict[str, Any]],
    earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
  """The JSON-able `record.json` of a run, which the report renders.

  Args:
    job: what was asked.
    findings: what was measured.
    unlearned: full params after unlearning.
    stages: of the run's clock.
    earlier: environments in which a resumed run ran before.

  Returns:
    The verdict and its `properties`; readings of forgetting, accuracy, PTQ gaps
    and perplexity; hidden share and attacks; how much of the edit survives each
    quantizer; the weights that moved; structural measures, circuit and training
    history; sample answers; and the model, data, config, environment and stages
    behind them.
  """
  config, quantize, params = job.config, job.quantize, job.model.params
  shares, details = quantize.survival(params, unlearned)
  changes = findings.changes or weight_change.compare(params, unlearned)
  return {
      **_judge(job, findings),
      'structure': findings.hidden['structure'],
      **findings.attacked, **findings.structure,
      'survival': shares, 'survival_details': details,
      'movement': weight_change.describe(changes),
      'circuit': describe_circuit(job.found),
      **(findings.training or describe_training()),
      'samples': findings.samples, 'quantizers': quantize.describe(),
      **_describe_run(
          config, job.model, job.evaluator.questions, stages,
          data=inputs_lib.describe(job.inputs), earlier=earlier,
          weights=tree_paths.count(params))}


def _judge(job: Job, findings: Findings) -> dict[str, Any]:
  """The verdict, its properties and the figures behind F, R and Q."""
  config, schemes = job.config, job.quantize.names
  answers = answers_lib.Answers(
      job.evaluator, findings.measured, resamples=config.eval.bootstrap,
      seed=config.seed)
  readings = answers.readings() | findings.recalled
  readings = {k: readings[k] for k in answers_lib.READINGS if k in readings}
  precisions = ('fp', *schemes)
  splits = list(job.evaluator.slices)
  reversed_facts = inputs_lib.reversed_facts(job.inputs)
  judged = answers_lib.judged(readings, reversed_facts)
  properties = {
      'F': verdict.property_f(
          judged, precisions, reverse=bool(reversed_facts)),
      'R': verdict.property_r(answers, precisions),
      'Q': verdict.property_q(judged, schemes),
      'S': verdict.property_s(
          findings.hidden['S'], findings.attacked.get('attack_verdict'))}
  return {
      'verdict': verdict.overall(properties), 'properties': properties,
      'forgetting': verdict.readings_entry(readings, precisions),
      'accuracy': verdict.accuracies(answers, splits, precisions),
      'accuracy_by_relation': verdict.by_group(
          answers, splits, precisions, answers.relations),
      'accuracy_by_form': verdict.by_group(
          answers, splits, precisions, answers.forms),
      **verdict.gaps(answers, schemes),
      **verdict.perplexities(findings.measured, precisions)}


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
    kl: dict[str, Any] | None = None, swapped: dict[str, int] | None = None,
    trained: dict[str, Any] | None = None) -> dict[str, Any]:
  """The record's fields about training, empty if nothing was trained.

  Args:
    history: from `training.unlearn`.
    kl: from `retain_kl.measure`.
    swapped: the counts of `swapped_subjects.spans`.
    trained: from `edits.describe`, and `most_steps`.
  """
  history = {k: v.tolist() for k, v in (history or {}).items()}
  if 'probe' in history:  # None, not NaN, at steps without a measure.
    history['probe'] = [x if x == x else None for x in history['probe']]
  return {
      'retain_kl': kl or {}, 'swapped_prompts': swapped,
      'trained': trained or {}, 'history': history}
