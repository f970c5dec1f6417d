"""The stages of a run that judge two models, called on shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax.circuits import lens
from mansu_jax.circuits import param_mask
from mansu_jax.circuits import suppression
from mansu_jax.data import tokenization
from mansu_jax.eval import generation
from mansu_jax.eval import weight_change
from mansu_jax.models import layout as model_layout
from mansu_jax.planning import job as job_lib
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.quant import survival
from mansu_jax.stages import attribution
from mansu_jax.stages import evaluation
from mansu_jax.stages import readability
from mansu_jax.stages import results

_COPIED_BACK = 11  # Circuits that `stages.erasure` copies back, about.
_SCALES = 32  # At which the suppression control is asked, about.


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
  with record.stage(
      'evaluate', '--eval_batch_tokens', base=model.params,
      unlearned=matrices, quantized=matrices):
    for name in config.quant_schemes:
      job_lib.quantized(job, name, calls=2)
    precisions = 1 + len(config.quant_schemes)
    for call in evaluator.programs(model.params, job.circuit.span[0]):
      record.call('scoring', call.fn, *call.args, calls=(
          precisions * call.calls * (1 if call.shared else 2)))


def _erasure(job: job_lib.Job) -> None:
  """What a lens reads and copying back, then scores for CAD and AS-NC."""
  config, record, model = job.config, job.recorder, job.model
  schemes, matrices = len(config.quant_schemes), job_lib.matrices(job)
  held = {'base': model.params, 'unlearned': matrices,
          'control': matrices['layers/mlp/down']}
  with record.stage('erasure', '--attribution_batch', **held):
    try:
      asked = readability.questions(config, job.inputs, model.tokenizer)
    except readability.NothingToRead:
      asked = None
    if asked:
      record.then(**held, quantized=matrices)
      batches = lens.batches_of(asked.fit + asked.prompts)
      rows, ends = map(recorder_lib.shapes_of, batches[0][:2])
      record.call(
          'lens.at_ends', lens.at_ends, model.config, model.params, rows, ends,
          calls=len(batches) * 2 * (1 + schemes))
      record.then(**held)
      _suppression(job, asked)
      record.then(**held, copied_back=matrices)
      _copied_back(job, rows, ends, len(batches) * (1 + schemes))
    if config.eval.cad_pairs:
      record.then(**held, quantized=matrices)
      runs = 3 + 2 * schemes  # Base, edit, control; both quantized.
      few = lambda pairs: pairs[:config.eval.cad_pairs]
      job_lib.scores(job, few(job_lib.forget_pairs(job)), runs)
      job_lib.scores(job, few(attribution.retain_pairs(
          config, job.inputs.splits, model.tokenizer)), runs - 1)


def _suppression(job: job_lib.Job, asked: readability.Questions) -> None:
  model, record, size = job.model, job.recorder, len(asked.prompts)
  residual = jax.ShapeDtypeStruct((size, model.config.d_model), jnp.float32)
  record.call('suppression.hidden', suppression.hidden, model.config,
              model.params, residual, calls=4)
  record.call('suppression.answered', suppression.answered, model.config,
              model.params, residual, recorder_lib.shapes_of(asked.asked),
              calls=_SCALES)


def _copied_back(job: job_lib.Job, rows, ends, batches: int) -> None:
  """Parts of the edit undone, and what such models say."""
  config, record, model = job.config, job.recorder, job.model
  slices = jax.eval_shape(param_mask.gather, model.params, job.index)
  job_lib.scattered(job, record.whole(slices))
  for name in config.quant_schemes:
    job_lib.quantized(job, name, calls=_COPIED_BACK, in_place=True)
  below = jax.ShapeDtypeStruct(
      (*rows.tokens.shape, model.config.d_model), jnp.float32)
  common = job.circuit.span[0]
  record.call(
      'lens.final', lens.final, model.config, model.params,
      below if common else None, rows, ends, calls=batches * _COPIED_BACK,
      common=common)


def _samples(job: job_lib.Job) -> None:
  """A few questions answered freely."""
  config, record, model = job.config, job.recorder, job.model
  chosen = results.asked_freely(config, job.inputs)
  if not chosen:
    return
  matrices = job_lib.matrices(job)
  tokens, length = generation.window(
      tokenization.encode_prompts(
          [q.prompt for _, q in chosen], model.tokenizer), results.NEW_TOKENS)
  with record.stage(
      'samples', '--eval_generations', base=model.params, unlearned=matrices,
      quantized=matrices):
    record.call(
        'next tokens', results.make_generator(model.config).next_tokens,
        model.params, *map(recorder_lib.shapes_of, (tokens, length)),
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
      scheme = quant.find(name)
      if not isinstance(scheme, quant.Scheme):
        continue
      for leaf, layout in model_layout.MATRICES.items():
        layers, *shape = flat[leaf].shape
        matrix = record.place(
            jax.ShapeDtypeStruct(tuple(shape), flat[leaf].dtype),
            model_layout.AXES[leaf][1:])
        record.call(
            f'{name} codes of {leaf}', survival.compare_matrix, matrix, matrix,
            None, scheme, layout.unbatched(), calls=layers)
