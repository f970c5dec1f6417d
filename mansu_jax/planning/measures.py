"""The stages of a run that judge two models, called on shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax.data import tokenization
from mansu_jax.erasure import lens
from mansu_jax.erasure import suppression
from mansu_jax.eval import generation
from mansu_jax.eval import weight_change
from mansu_jax.models import layout as model_layout
from mansu_jax.planning import job as job_lib
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.quant import survival
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.judge import erasure
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import readability
from mansu_jax.stages.judge import results


def plan(job: job_lib.Job) -> None:
  """Goes through them; the account is the recorder's."""
  _evaluate(job)
  _erasure(job)
  _samples(job)
  _survival(job)


def _evaluate(job: job_lib.Job) -> None:
  """Both models at every precision, on all questions and texts."""
  config, record, model = job.config, job.recorder, job.model
  evaluator = evaluation.Evaluator(config, job.inputs, model)
  matrices = job_lib.matrices(job)
  held = {'base': model.params, 'unlearned': matrices}
  calibrated = [n for n in config.quant_schemes if n in quant.CALIBRATED]
  flags = ['--eval_batch_tokens'] + ['--eval_calibration_tokens'] * bool(
      calibrated)
  with record.stage('evaluate', ', '.join(flags), **held):
    for name in calibrated:
      job_lib.calibrated(job, name, calls=2)
    record.then(**held, quantized=matrices)
    for name in config.quant_schemes:
      job_lib.quantized(job, name, calls=2)
    precisions = 1 + len(config.quant_schemes)
    for call in evaluator.programs(model.params, job.circuit.span[0]):
      record.call('scoring', call.fn, *call.args, calls=(
          precisions * call.calls * (1 if call.shared else 2)))


def _erasure(job: job_lib.Job) -> None:
  """What a lens reads and copying back, then scores for CAD and AS-NC."""
  config, record, model = job.config, job.recorder, job.model
  matrices = job_lib.matrices(job)
  held = {'base': model.params, 'unlearned': matrices}
  with record.stage('erasure', '--attribution_batch', **held):
    pairs = job_lib.forget_pairs(job)[:config.eval.cad_pairs]
    try:
      asked = readability.questions(config, job.inputs, model.tokenizer)
    except readability.NothingToRead:
      asked = None
    if asked:
      _suppression(job, asked, pairs)
      held['control'] = matrices['layers/mlp/down']
      record.then(**held, quantized=matrices)
      _lens(job, asked)
      _copied_back(job, asked, held)
    if config.eval.cad_pairs:
      record.then(**held, quantized=matrices)
      for name in config.quant_schemes:
        job_lib.quantized(job, name, calls=4)  # Both models, for CAD and AS-NC.
      # Base, edit and, on forget pairs, control; the first two quantized.
      runs = 2 + 2 * len(config.quant_schemes)
      job_lib.scores(job, pairs, runs + ('control' in held))
      job_lib.scores(job, prompt_pairs.retain_pairs(
          config.attribution, job.inputs.splits, model.tokenizer,
          seed=config.seed, chat=config.data.chat)[:config.eval.cad_pairs],
                     runs)


def _lens(job: job_lib.Job, asked: readability.Questions) -> None:
  """States at the ends of prompts, of both models at every precision."""
  config, model = job.config, job.model
  for name in config.quant_schemes:
    job_lib.quantized(job, name, calls=2)
  batches = lens.batches_of(asked.fit + asked.prompts)
  job.recorder.call(
      'lens.at_ends', lens.at_ends, model.config, model.params,
      *map(recorder_lib.shapes_of, batches[0][:2]),
      calls=len(batches) * 2 * (1 + len(config.quant_schemes)))


def _suppression(
    job: job_lib.Job, asked: readability.Questions, pairs: Sequence[Any]
) -> None:
  """What the control is made of, and how well it answers at some scales."""
  model, record = job.model, job.recorder
  states = lambda size: jax.ShapeDtypeStruct(
      (size, model.config.d_model), jnp.float32)
  hide, keep = len(asked.prompts) + len(pairs), len(asked.fit)
  for size in (hide, keep):
    record.call('suppression.hidden', suppression.hidden, model.config,
                model.params, states(size))
  asks = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      (hide, *x.shape[1:]), x.dtype), asked.asked)
  record.call('suppression.answered', suppression.answered, model.config,
              model.params, states(hide), asks, calls=suppression.HALVINGS + 1)


def _copied_back(
    job: job_lib.Job, asked: readability.Questions, held: dict[str, Any]
) -> None:
  """Halves of the edit undone, and what such models say."""
  config, record, model = job.config, job.recorder, job.model
  schemes = [name for name in config.quant_schemes
             if name not in quant.CALIBRATED]
  copies, precisions = 1 + erasure.HALVES, 1 + len(schemes)
  record.then(**held)
  slices = job_lib.gathered(job, calls=copies * precisions)
  record.then(**held, slices=slices, copied_back=job_lib.matrices(job))
  job_lib.scattered(job, slices, calls=copies * precisions)
  record.then(**held, copied_back=job_lib.matrices(job))
  for name in schemes:
    job_lib.quantized(job, name, calls=copies, in_place=True)
  batches, common = lens.batches_of(asked.prompts), job.circuit.span[0]
  rows, ends = map(recorder_lib.shapes_of, batches[0][:2])
  below = None
  if common:
    below = recorder_lib.shapes_of(record.call(
        'lens.run_prefix', lens.run_prefix, model.config, model.params, rows,
        calls=len(batches) * precisions, common=common))
  record.call(
      'lens.final', lens.final, model.config, model.params, below, rows, ends,
      calls=len(batches) * copies * precisions, common=common)


def _samples(job: job_lib.Job) -> None:
  """A few questions answered freely."""
  config, record, model = job.config, job.recorder, job.model
  chosen = results.asked_freely(config, job.inputs)
  if not chosen:
    return
  matrices = job_lib.matrices(job)
  rows = generation.window(
      tokenization.encode_prompts(
          [q.prompt for _, q in chosen], model.tokenizer,
          chat=config.data.chat), results.NEW_TOKENS)
  with record.stage(
      'samples', '--eval_generations', base=model.params, unlearned=matrices,
      quantized=matrices):
    job_lib.quantized(job, config.quant_schemes[0])
    record.call(
        'next tokens', results.make_generator(model.config).next_tokens,
        model.params, *map(recorder_lib.shapes_of, rows),
        calls=3 * results.NEW_TOKENS)


def _survival(job: job_lib.Job) -> None:
  """Both models' weights and codes compared, a matrix at a time."""
  config, record = job.config, job.recorder
  flat = tree_paths.flatten(job.model.params)
  with record.stage('survival', '', base=job.model.params,
                    unlearned=job_lib.matrices(job)):
    for leaf, array in flat.items():
      record.call(f'change of {leaf}', weight_change.row_sums, array, array)
    for name in config.quant_schemes:
      calibrated = name in quant.CALIBRATED
      codes = job_lib.codes(job, name) if calibrated else {}
      for leaf, layout in model_layout.MATRICES.items():
        layers, *shape = flat[leaf].shape
        matrix = record.place(
            jax.ShapeDtypeStruct(tuple(shape), flat[leaf].dtype),
            model_layout.AXES[leaf][1:])
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
            x.shape[1:], x.dtype), codes.get(leaf))
        record.call(
            f'{name} codes of {leaf}', survival.compare_matrix, matrix, matrix,
            (one, one) if calibrated else None,
            None if calibrated else quant.find(name), layout.unbatched(),
            calls=layers)
