"""The programs of the hidden share (see `runtime.programs`)."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp

from mansu_jax.erasure import spans
from mansu_jax.erasure import transplant
from mansu_jax.runtime import programs
from mansu_jax.stages.judge import hidden_share as hidden_share_lib
from mansu_jax.stages.judge import programs as judge_programs
from mansu_jax.stages.prepare import answer_layers


def hidden_share(job: judge_programs.Job) -> programs.Programs:
  """The mover layer, then the base's mover layer in each model.

  The mover layer is not known before the run; the plan takes the middle one.
  """
  model, held = job.model, job.both_models()
  yield programs.hold(**held)
  try:
    asked = hidden_share_lib.choose(
        job.inputs, model.tokenizer, limit=job.options.hidden_questions,
        seed=job.attribution.seed, chat=job.data.chat)
  except hidden_share_lib.REASONS:
    return
  if job.attribution.layers is None:
    yield from answer_layers.programs_of(model, asked.train)
  yield programs.hold(**held, changed=held['unlearned'])
  for name in job.schemes:  # The edited model and the base.
    yield from judge_programs.quantize(job, name, calls=2)
  # The edited model at each precision; then noise and the quantized bases.
  described = 1 + len(job.schemes)
  yield from _transplants(job, asked.forget, 2 * described, described)
  if asked.retain is not None:
    yield from _transplants(job, asked.retain, 1, 0)


def _transplants(
    job: judge_programs.Job, questions: spans.Questions, models: int,
    described: int) -> programs.Programs:
  """Runs the base and some models, of which some are described."""
  config, params = job.model.config, job.model.params
  others, layer = hidden_share_lib.OTHERS, config.num_layers // 2
  for calls, rows, source in answer_layers.shapes_of(questions):
    states = yield programs.program(
        'transplant.run', transplant.run, config, params, rows,
        calls=calls * (1 + models), layer=layer)
    yield programs.program(
        'transplant.routed', transplant.routed, config, params, states.before,
        params, states.before, params, rows,
        calls=calls * (1 + models + described), layer=layer)
    yield programs.program(
        'transplant.replaced', transplant.replaced, config, params,
        states.before, source, rows, calls=calls * others, layer=layer)
    if described:
      yield programs.program(
          'transplant.read_by_base', transplant.read_by_base, config, params,
          states.before, states, rows, calls=calls * described, layer=layer)
    rows_of = jax.ShapeDtypeStruct((1 + others, *source.shape), jnp.int32)
    asked = collections.Counter({1: 1 + models + described})  # By views.
    asked.update({config.num_layers - layer: 1 + models})
    asked.update({2: described})
    asked.update({others: 1})
    for views, times in asked.items():
      x = jax.ShapeDtypeStruct(
          (source.shape[0], views, config.d_model), jnp.float32)
      yield programs.program(
          'transplant.picks', transplant.picks, config, params, x,
          rows.choices, rows_of, calls=calls * times)
