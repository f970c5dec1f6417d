"""From measurements to the record, and the exported model."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.eval import generation
from mansu_jax.eval import weight_change
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models.io import hf_io
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import verdict
from mansu_jax.stages.prepare import inputs as inputs_lib

NEW_TOKENS = 12  # Of a sample, at most.


def export(
    config: run_config.RunConfig, model: Any, unlearned: types.Params,
    root: pathlib.Path) -> None:
  """Writes `model/`, which transformers loads."""
  hf_io.write(root / 'model', model.config, unlearned, model.tokenizer,
              export_dtype=config.export_dtype)


def write_answers(
    evaluator: evaluation.Evaluator, measured: verdict.Measured,
    root: pathlib.Path) -> None:
  """Writes `answers.jsonl`: what each model answered to each question.

  A line is {split, id, fact, relation, prompt, answer, choices, models};
  `models` is
  {model: {precision: {choice, correct, margin}}}: the likeliest choice, whether
  it is the right answer, and the log-probability of that less the best wrong
  one's, in nats.
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
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    quantize: quantizers.Quantizers, model: Any, unlearned: types.Params
) -> list[dict[str, Any]]:
  """Free answers to a few questions of each split, before and after."""
  chosen = asked_freely(config, inputs)
  if not chosen:
    return []
  scheme = config.quant_schemes[0]
  variants = {
      'base': model.params, 'unlearned': unlearned,
      f'unlearned_{scheme}': quantize(scheme, unlearned)}
  generator = make_generator(model.config)
  prompts = [q.prompt for _, q in chosen]
  texts = {name: generation.complete(
      generator, params, prompts, model.tokenizer,
      max_new_tokens=NEW_TOKENS, chat=config.data.chat)
           for name, params in variants.items()}
  return [
      {'split': split, 'id': q.id, 'prompt': q.prompt, 'answer': q.answer,
       'continuations': {name: texts[name][i] for name in variants}}
      for i, (split, q) in enumerate(chosen)]


def asked_freely(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs
) -> list[tuple[str, questions_lib.Question]]:
  """The questions that samples answer, with their splits."""
  return [
      (split, q) for split, questions in inputs.evaluation.items()
      if split != 'forget' and config.eval.generations
      for q in inputs_lib.thin(
          questions, config.eval.generations, config.seed)]


def make_generator(config: model_config.ModelConfig) -> generation.Generator:
  """Continues prompts by models of one config."""
  return generation.Generator(
      lambda params, tokens, positions, mask: decoder.forward(
          config, params, tokens, positions=positions, attention_mask=mask),
      decoder.unembed)


def write_circuit(
    found: attribution.Found, shape: Any, root: pathlib.Path) -> None:
  """Writes `circuit.json`: nodes, and edges where it is made of them.

  These are in `circuit_edges.json` too, in the Mechanistic Interpretability
  Benchmark's format, which `--circuit_file` reads.

  Args:
    found: the circuit.
    shape: the model's config.
    root: the workdir.
  """
  fields = graph.to_json(found.circuit, found.means)
  if found.edges is not None:
    fields['edges'] = edge_circuit.named(found.edges, shape)
    files.write_json(root / 'circuit_edges.json', edge_circuit.to_json(
        found.edges, shape))
  files.write_json(root / 'circuit.json', fields | {'report': found.report})


def describe_circuit(found: attribution.Found | None) -> dict[str, Any]:
  """The record's account of the circuit; {} where none was attributed."""
  if found is None:
    return {}
  by_layer = {k: found.circuit[k].sum(1).tolist() for k in found.circuit.kinds}
  return found.report | {'by_layer': by_layer}


def make_record(
    *, config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    quantize: quantizers.Quantizers, model: Any,
    found: attribution.Found | None, evaluator: evaluation.Evaluator,
    measured: verdict.Measured, structure: dict[str, Any],
    unlearned: types.Params, answers_in_words: list[dict[str, Any]],
    stages: list[dict[str, Any]],
    changes: dict[str, weight_change.Change] | None = None,
    training: dict[str, Any] | None = None,
    earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
  """Everything the report shows; JSON-able (see the contract).

  Args:
    config: the run's.
    inputs: its data.
    quantize: its quantizers.
    model: the base.
    found: the circuit; None: there is none.
    evaluator: of the questions.
    measured: what both models did on them.
    structure: what `erasure.measure` gives.
    unlearned: params after.
    answers_in_words: see `samples`.
    stages: of the run's clock.
    changes: what moved; None: it is compared here.
    training: what `trained` gives; None: nothing was trained.
    earlier: other environments that the run was in before.
  """
  answers = verdict.Answers(evaluator, measured, config)
  precisions = ('fp', *config.quant_schemes)
  splits = list(evaluator.slices)
  gaps = verdict.gaps(answers, config.quant_schemes)
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
      'circuit': describe_circuit(found), **(training or trained()),
      'samples': answers_in_words,
      'model': model.source | {
          'weights': tree_paths.count(model.params),
          'config': dataclasses.asdict(model.config)},
      'tokenization': describe_tokenization(
          config, model.tokenizer, evaluator.questions),
      'data': inputs_lib.describe(inputs),
      'quantizers': quantize.describe(),
      'config': dataclasses.asdict(config),
      'environment': environment.describe() | (
          {'earlier': list(earlier)} if earlier else {}),
      'stages': stages,
  }


def describe_tokenization(
    config: run_config.RunConfig, tokenizer: Any,
    questions: Sequence[questions_lib.Question]) -> dict[str, Any]:
  """How questions became tokens; {} without a tokenizer.

  With --data_chat also `asked_as_written`: how many of these questions hold
  special tokens already, and are not wrapped.
  """
  if not tokenizer:
    return {}
  found = tokenization.describe(tokenizer, chat=config.data.chat)
  if config.data.chat:
    found['asked_as_written'] = sum(
        tokenization.is_marked(q.prompt, tokenizer) for q in questions)
  return found


def trained(
    history: dict[str, np.ndarray] | None = None,
    kl: dict[str, Any] | None = None, swapped: dict[str, int] | None = None
) -> dict[str, Any]:
  """What the record says of training; by default that there was none."""
  return {
      'retain_kl': kl or {}, 'swapped_prompts': swapped,
      'history': {k: v.tolist() for k, v in (history or {}).items()}}
