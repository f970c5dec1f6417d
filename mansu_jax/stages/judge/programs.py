"""The programs that measure two models (see `runtime.programs`)."""

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
from mansu_jax.models import programs as model_programs
from mansu_jax.quant import survival as survival_lib
from mansu_jax.runtime import programs
from mansu_jax.stages.circuit import programs as circuit_programs
from mansu_jax.stages.judge import erasure as erasure_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import first_token_questions
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import abstract


def evaluate(run: abstract.AbstractRun) -> programs.Programs:
  """Scores both models at every precision on all questions and texts."""
  config, model = run.config, run.model
  evaluator = evaluation.Evaluator(
      config.eval, config.data, run.inputs, model)
  held = _both_models(run)
  calibrated = set(config.quant_schemes) & set(quant.CALIBRATED)
  yield programs.lowered_by('--eval_batch_tokens', *(
      ['--eval_calibration_tokens'] if calibrated else []))
  yield programs.hold(**held)
  for name in config.quant_schemes:
    if name in calibrated:
      yield from model_programs.calibrate(
          model.config, model.params, name, run.calibration_windows, calls=2)
  yield programs.hold(**held, quantized=held['unlearned'])
  for name in config.quant_schemes:
    yield from quantize(run, name, calls=2)
  precisions = 1 + len(config.quant_schemes)
  for call in evaluator.programs(model.params, run.circuit.span[0]):
    yield programs.program('scoring', call.fn, *call.args, calls=(
        precisions * call.calls * (1 if call.shared else 2)))


def _both_models(run: abstract.AbstractRun) -> dict[str, Any]:
  return {'base': run.model.params,
          'unlearned': model_programs.matrices(run.model.params)}


def quantize(
    run: abstract.AbstractRun, name: str, *, calls: int = 1,
    donate: bool = False) -> programs.Programs:
  """Quantizes `calls` models, or decodes their calibrated codes."""
  params = run.model.params
  if name not in quant.CALIBRATED:
    return (yield from model_programs.quantize(
        params, name, calls=calls, donate=donate))
  return (yield from model_programs.decode(
      params, name, _codes(run, name), calls=calls))


def _codes(run: abstract.AbstractRun, name: str) -> dict[str, Any]:
  return model_programs.codes(
      run.model.config, run.model.params, name, run.calibration_windows,
      run.placer)


def erasure(run: abstract.AbstractRun) -> programs.Programs:
  """Lens, suppression control and copy-back; then scores for CAD and AS-NC.

  The control is assumed to match the unlearned model's accuracy.
  """
  config, model = run.config, run.model
  held = _both_models(run)
  matrices = held['unlearned']
  yield programs.lowered_by('--attribution_batch')
  yield programs.hold(**held)
  pairs = circuit_programs.forget_pairs(run)[:config.eval.cad_pairs]
  try:
    asked = first_token_questions.choose(
        run.inputs, model.tokenizer, limit=config.eval.lens_questions,
        seed=config.seed, chat=config.data.chat)
  except first_token_questions.NothingToRead:
    asked = None
  if asked:
    yield from _suppression(run, asked, pairs)
    held['control'] = matrices['layers/mlp/down']
    yield programs.hold(**held, quantized=matrices)
    yield from _lens(run, asked)
    yield from _copy_back(run, asked, held)
  if config.eval.cad_pairs:
    yield programs.hold(**held, quantized=matrices)
    for name in config.quant_schemes:
      yield from quantize(run, name, calls=4)  # Both models; CAD and AS-NC.
    # Base and unlearned model at every precision; the control on CAD's pairs.
    models = 2 + 2 * len(config.quant_schemes)
    yield from circuit_programs.scores(run, pairs, models + ('control' in held))
    yield from circuit_programs.scores(
        run, circuit_programs.retain_pairs(run)[:config.eval.cad_pairs],
        models)


def _lens(
    run: abstract.AbstractRun, asked: first_token_questions.Questions
) -> programs.Programs:
  """States at the ends of prompts, of both models at every precision."""
  schemes = run.config.quant_schemes
  for name in schemes:
    yield from quantize(run, name, calls=2)
  yield _at_ends(
      run, asked.fit + asked.prompts, models=2 * (1 + len(schemes)))


def _at_ends(
    run: abstract.AbstractRun, prompts: Sequence[Sequence[int]], *, models: int
) -> programs.Program:
  """States of some models at the ends of prompts."""
  batches = lens.batches_of(prompts)
  return programs.program(
      'lens.at_ends', lens.at_ends, run.model.config, run.model.params,
      *map(programs.shapes_of, batches[0][:2]), calls=len(batches) * models)


def _suppression(
    run: abstract.AbstractRun, asked: first_token_questions.Questions,
    pairs: Sequence[Any]) -> programs.Programs:
  """Makes the control and measures its accuracy at several scales.

  Its states are computed from the base's, which include those of the pairs.
  """
  model = run.model
  states = lambda size: jax.ShapeDtypeStruct(
      (size, model.config.d_model), jnp.float32)
  if pairs:
    yield _at_ends(run, [p.clean_ids for p in pairs], models=1)
  hide, keep = len(asked.prompts) + len(pairs), len(asked.fit)
  for size in (hide, keep, keep, len(asked.prompts)):
    yield programs.program(
        'suppression.hidden', suppression.hidden, model.config, model.params,
        states(size))
  asks = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      (hide, *x.shape[1:]), x.dtype), asked.asked)
  yield programs.program(
      'suppression.answered', suppression.answered, model.config,
      model.params, states(hide), asks, calls=suppression.HALVINGS + 1)


def _copy_back(
    run: abstract.AbstractRun, asked: first_token_questions.Questions,
    held: dict[str, Any]) -> programs.Programs:
  """Copies the base's weights back on parts of the circuit, and asks again.

  One more copy, on the whole circuit, shows that nothing else has changed.
  """
  model = run.model
  schemes = [name for name in run.config.quant_schemes
             if name not in quant.CALIBRATED]
  copies, precisions = 1 + erasure_lib.HALVES, 1 + len(schemes)
  matrices = held['unlearned']
  yield programs.hold(**held)
  calls = 1 + copies * precisions
  slices = yield from circuit_programs.gather(run, calls=calls)
  yield programs.hold(
      **held, slices=programs.CircuitSized(slices), copied_back=matrices)
  yield from circuit_programs.scatter(run, slices, calls=calls)
  yield programs.hold(**held, copied_back=matrices)
  for name in schemes:
    yield from quantize(run, name, calls=copies, donate=True)
  batches, common = lens.batches_of(asked.prompts), run.circuit.span[0]
  rows, ends = map(programs.shapes_of, batches[0][:2])
  below = None
  if common:
    below = programs.shapes_of((yield programs.program(
        'lens.run_prefix', lens.run_prefix, model.config, model.params, rows,
        calls=len(batches) * precisions, common=common)))
  yield programs.program(
      'lens.final', lens.final, model.config, model.params, below, rows, ends,
      calls=len(batches) * copies * precisions, common=common)


def samples(run: abstract.AbstractRun) -> programs.Programs:
  """Answers a few questions freely with three models."""
  config, model = run.config, run.model
  chosen = results.asked_freely(
      run.inputs, config.eval.generations, seed=config.seed)
  held = _both_models(run)
  yield programs.lowered_by('--eval_generations')
  yield programs.hold(**held, quantized=held['unlearned'])
  if not chosen:
    return
  yield from quantize(run, config.quant_schemes[0])
  rows = generation.window(
      tokenization.encode_prompts(
          [q.prompt for _, q in chosen], model.tokenizer,
          chat=config.data.chat), results.NEW_TOKENS)
  yield programs.program(
      'next tokens', results.make_generator(model.config).next_tokens,
      model.params, *map(programs.shapes_of, rows),
      calls=3 * results.NEW_TOKENS)


def survival(run: abstract.AbstractRun) -> programs.Programs:
  """Compares both models' weights and codes, a matrix at a time."""
  flat = tree_paths.flatten(run.model.params)
  yield programs.hold(**_both_models(run))
  for leaf, array in flat.items():
    yield programs.program(
        f'change of {leaf}', weight_change.row_sums, array, array)
  for name in run.config.quant_schemes:
    calibrated = name in quant.CALIBRATED
    codes = _codes(run, name) if calibrated else {}
    for leaf, layout in model_layout.MATRICES.items():
      layers, *shape = flat[leaf].shape
      matrix = run.placer.shard(
          jax.ShapeDtypeStruct(tuple(shape), flat[leaf].dtype),
          model_layout.AXES[leaf][1:])
      one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
          x.shape[1:], x.dtype), codes.get(leaf))
      yield programs.program(
          f'{name} codes of {leaf}', survival_lib.compare_matrix, matrix,
          matrix, (one, one) if calibrated else None,
          None if calibrated else quant.find(name), layout.unbatched(),
          calls=layers)
