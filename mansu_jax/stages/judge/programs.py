"""The programs that measure two models (see `runtime.programs`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax.config import run as run_config
from mansu_jax.data import tokenization
from mansu_jax.erasure import lens
from mansu_jax.erasure import suppression
from mansu_jax.eval import generation
from mansu_jax.eval import weight_change
from mansu_jax.models import calibration
from mansu_jax.models import layout as model_layout
from mansu_jax.models import programs as model_programs
from mansu_jax.quant import survival as survival_lib
from mansu_jax.runtime import programs
from mansu_jax.stages.circuit import programs as circuit_programs
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import erasure as erasure_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import first_token_questions
from mansu_jax.stages.judge import recall as recall_lib
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.prepare import generating
from mansu_jax.stages.prepare import inputs as inputs_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What the programs of this stage depend on.

  Attributes:
    model: the base.
    inputs: questions and texts.
    attribution: settings of attribution; CAD and AS-NC score with the same.
    options: numbers of questions, pairs and samples.
    data: chat form, and length of text windows.
    schemes: quantizers of the run.
    whole: whether training changed every layer, not a circuit only.
  """

  model: abstract.AbstractModel
  inputs: inputs_lib.Inputs
  attribution: settings_lib.Settings
  options: run_config.EvalConfig
  data: run_config.DataConfig
  schemes: tuple[str, ...]
  whole: bool = False

  @property
  def common(self) -> int:
    """Number of first layers that both models share."""
    return 0 if self.whole else self.model.circuit.span[0]

  @functools.cached_property
  def calibration_windows(self) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, T] and mask of the calibration text."""
    return calibration.choose_windows(
        self.inputs.calibration, self.model.tokenizer,
        most_tokens=self.options.calibration_tokens)

  def both_models(self) -> dict[str, Any]:
    """Trees that every part of the stage holds."""
    return {'base': self.model.params,
            'unlearned': model_programs.matrices(self.model.params)}


def evaluate(job: Job) -> programs.Programs:
  """Scores both models at every precision on all questions and texts."""
  model = job.model
  evaluator = evaluation.Evaluator(
      job.options, job.data, job.inputs, model.loaded)
  held = job.both_models()
  calibrated = set(job.schemes) & set(quant.CALIBRATED)
  yield programs.lowered_by('--eval_batch_tokens', *(
      ['--eval_calibration_tokens'] if calibrated else []))
  yield programs.hold(**held)
  for name in job.schemes:
    if name in calibrated:
      yield from model_programs.calibrate(
          model.config, model.params, name, job.calibration_windows, calls=2)
  yield programs.hold(**held, quantized=held['unlearned'])
  for name in job.schemes:
    yield from quantize(job, name, calls=2)
  precisions = 1 + len(job.schemes)
  for call in evaluator.programs(model.params, job.common):
    yield programs.program('scoring', call.fn, *call.args, calls=(
        precisions * call.calls * (1 if call.shared else 2)))


def quantize(
    job: Job, name: str, *, calls: int = 1, donate: Collection[str] = ()
) -> programs.Programs:
  """Quantizes `calls` models, or decodes their calibrated codes."""
  params = job.model.params
  if name not in quant.CALIBRATED:
    return (yield from model_programs.quantize(
        params, name, calls=calls, donate=donate))
  return (yield from model_programs.decode(
      params, name, _codes(job, name), calls=calls))


def _codes(job: Job, name: str) -> dict[str, Any]:
  return model_programs.codes(
      job.model.config, job.model.params, name, job.calibration_windows,
      job.model.placer)


def erasure(job: Job) -> programs.Programs:
  """Lens, suppression control and copy-back; then scores for CAD and AS-NC.

  The control is assumed to match the unlearned model's accuracy.
  """
  model = job.model
  held = job.both_models()
  matrices = held['unlearned']
  yield programs.lowered_by('--attribution_batch')
  yield programs.hold(**held)
  pairs = _cad_pairs(job, prompt_pairs.forget_pairs)
  try:
    asked = first_token_questions.choose(
        job.inputs, model.tokenizer, limit=job.options.lens_questions,
        seed=job.attribution.seed, chat=job.data.chat)
  except first_token_questions.NothingToRead:
    asked = None
  if asked:
    yield from _suppression(job, asked, pairs)
    held['control'] = matrices['layers/mlp/down']
    yield programs.hold(**held, quantized=matrices)
    yield from _lens(job, asked)
    yield from _copy_back(job, asked, held)
  if job.options.cad_pairs:
    yield programs.hold(**held, quantized=matrices)
    for name in job.schemes:
      yield from quantize(job, name, calls=4)  # Both models; CAD and AS-NC.
    # Base and unlearned model at every precision; the control on CAD's pairs.
    models = 2 + 2 * len(job.schemes)
    scores = functools.partial(
        circuit_programs.scores, model, job.attribution.attribution)
    yield from scores(pairs, models + ('control' in held))
    yield from scores(_cad_pairs(job, prompt_pairs.retain_pairs), models)


def _cad_pairs(job: Job, make: Callable[..., list[Any]]) -> list[Any]:
  pairs = make(job.attribution, job.inputs.splits, job.model.tokenizer)
  return pairs[:job.options.cad_pairs]


def _lens(
    job: Job, asked: first_token_questions.Questions
) -> programs.Programs:
  """States at the ends of prompts, of both models at every precision."""
  schemes = job.schemes
  for name in schemes:
    yield from quantize(job, name, calls=2)
  yield _at_ends(
      job, asked.fit + asked.prompts, models=2 * (1 + len(schemes)))


def _at_ends(
    job: Job, prompts: Sequence[Sequence[int]], *, models: int
) -> programs.Program:
  """States of some models at the ends of prompts."""
  batches = lens.batches_of(prompts)
  return programs.program(
      'lens.at_ends', lens.at_ends, job.model.config, job.model.params,
      *map(programs.shapes_of, batches[0][:2]), calls=len(batches) * models)


def _suppression(
    job: Job, asked: first_token_questions.Questions,
    pairs: Sequence[Any]) -> programs.Programs:
  """Makes the control and measures its accuracy at several scales.

  Its states are computed from the base's, which include those of the pairs.
  """
  model = job.model
  states = lambda size: jax.ShapeDtypeStruct(
      (size, model.config.d_model), jnp.float32)
  if pairs:
    yield _at_ends(job, [p.clean_ids for p in pairs], models=1)
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
    job: Job, asked: first_token_questions.Questions,
    held: dict[str, Any]) -> programs.Programs:
  """Copies the base's weights back on parts of the circuit, and asks again.

  One more copy, on the whole circuit, shows that nothing else has changed.
  """
  model = job.model
  schemes = [name for name in job.schemes
             if name not in quant.CALIBRATED]
  copies, precisions = 1 + erasure_lib.HALVES, 1 + len(schemes)
  if job.whole:  # The circuit, its complement and random circuits too.
    copies += 2 + erasure_lib.RANDOM_COPIED
  matrices = held['unlearned']
  yield programs.hold(**held)
  calls = 1 + copies * precisions
  slices = yield from circuit_programs.gather(model, calls=calls)
  yield programs.hold(
      **held, slices=programs.CircuitSized(slices), copied_back=matrices)
  yield from circuit_programs.scatter(model, slices, calls=calls)
  yield programs.hold(**held, copied_back=matrices)
  for name in schemes:  # In place, except for leaves shared with a model.
    yield from quantize(
        job, name, calls=copies, donate=tree_paths.flatten(slices))
  batches, common = lens.batches_of(asked.prompts), job.common
  rows, ends = map(programs.shapes_of, batches[0][:2])
  below = None
  if common:
    below = programs.shapes_of((yield programs.program(
        'lens.run_prefix', lens.run_prefix, model.config, model.params, rows,
        calls=len(batches) * precisions, common=common)))
  yield programs.program(
      'lens.final', lens.final, model.config, model.params, below, rows, ends,
      calls=len(batches) * copies * precisions, common=common)


def samples(job: Job) -> programs.Programs:
  """Answers a few questions freely with three models."""
  model = job.model
  chosen = results.asked_freely(
      job.inputs, job.options.generations, seed=job.attribution.seed)
  held = job.both_models()
  yield programs.lowered_by('--eval_generations')
  yield programs.hold(**held, quantized=held['unlearned'])
  if not chosen:
    return
  yield from quantize(job, job.schemes[0])
  prompts = tokenization.encode_prompts(
      [q.prompt for _, q in chosen], model.tokenizer, chat=job.data.chat)
  yield from generating.programs_of(
      model, generation.batches(prompts, results.NEW_TOKENS),
      results.NEW_TOKENS, models=3)


def recall(job: Job) -> programs.Programs:
  """Both models answer in their own words, at every precision.

  The base in full precision decides how many questions the others are asked.
  """
  model = job.model
  recaller = recall_lib.Recaller(
      job.options, job.data, job.inputs, model.loaded,
      seed=job.attribution.seed)
  held = job.both_models()
  yield programs.lowered_by('--eval_batch_tokens')
  yield programs.hold(**held, quantized=held['unlearned'])
  found = [b for batches in recaller.batches().values() for b in batches]
  if found:
    for name in job.schemes:
      yield from quantize(job, name, calls=2)
    yield from generating.programs_of(
        model, found, recaller.new_tokens, models=1)
    yield from generating.programs_of(
        model, found, recaller.new_tokens, models=1 + 2 * len(job.schemes),
        at_most=True)


def survival(job: Job) -> programs.Programs:
  """Compares both models' weights and codes, a matrix at a time."""
  flat = tree_paths.flatten(job.model.params)
  yield programs.hold(**job.both_models())
  for leaf, array in flat.items():
    yield programs.program(
        f'change of {leaf}', weight_change.row_sums, array, array)
  for name in job.schemes:
    calibrated = name in quant.CALIBRATED
    codes = _codes(job, name) if calibrated else {}
    for leaf, layout in model_layout.matrices_of(flat).items():
      layers, *shape = flat[leaf].shape
      matrix = job.model.placer.shard(
          jax.ShapeDtypeStruct(tuple(shape), flat[leaf].dtype),
          model_layout.AXES[leaf][1:])
      one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
          x.shape[1:], x.dtype), codes.get(leaf))
      yield programs.program(
          f'{name} codes of {leaf}', survival_lib.compare_matrix, matrix,
          matrix, (one, one) if calibrated else None,
          None if calibrated else quant.find(name), layout.unbatched(),
          calls=layers)
