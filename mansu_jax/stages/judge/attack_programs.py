"""The programs that attack the unlearned model (see `runtime.programs`)."""

from __future__ import annotations

import numpy as np

from mansu_jax.attacks import fine_tune
from mansu_jax.eval import accuracy
from mansu_jax.models import lora
from mansu_jax.models import programs as model_programs
from mansu_jax.runtime import programs
from mansu_jax.stages.judge import attacks as attacks_lib
from mansu_jax.stages.judge import programs as judge_programs
from mansu_jax.stages.prepare import reteaching


def attacks(job: judge_programs.Job) -> programs.Programs:
  """Fine-tunes the unlearned model and asks it at every precision.

  Attacks on all weights hold a float32 copy with the two moments of Adam, and
  each step makes the gradients; `--eval_attacks=lora` avoids all four.
  """
  model, held = job.model, job.both_models()
  yield programs.lowered_by('--eval_attacks=lora', '--eval_attacks=')
  yield programs.hold(**held)
  if not job.options.attacks:
    return
  try:
    found = attacks_lib.Attacks(
        job.options, job.data, job.inputs, model.loaded, job.schemes,
        seed=job.attribution.seed)
  except reteaching.TooFewFacts:
    return
  for side in found.sides:  # The base.
    yield from _ask(job, found, found.tasks[side], calls=1)
  for run in found.runs:
    yield programs.hold(**held)
    steps, frozen, trained = run.plan.steps, None, model.params
    if not run.plan.trains:
      yield programs.hold(
          **held, quantized=model_programs.matrices(model.params))
      for name in found.views[1:]:
        yield from judge_programs.quantize(job, name, calls=1)
      for side in run.asks:
        for count in steps:
          yield from _ask(
              job, found, found.shown[side, count], calls=len(found.views))
      continue
    if run.plan.adapters:
      frozen, trained = trained, model.placer.replicate(
          lora.shapes(trained, fine_tune.RANK))
    carry = yield programs.program(
        'start of an attack', fine_tune.start, trained)
    held_now = held | {'attacked and optimizer': carry}
    yield programs.hold(**held_now)
    yield programs.program(
        f'step of {run.plan.kind}', fine_tune.train_step, model.config,
        frozen, carry, programs.shapes_of(run.lesson[0]), np.float32(0),
        calls=steps[-1])
    if run.plan.adapters:
      held_now['merged'] = model_programs.matrices(model.params)
      yield programs.hold(**held_now)
      yield from model_programs.merge_adapters(
          model.params, carry[0], fine_tune.SCALE, calls=len(steps))
    yield programs.hold(
        **held_now, quantized=model_programs.matrices(model.params))
    for name in found.views[1:]:
      yield from judge_programs.quantize(job, name, calls=len(steps))
    for side in run.asks:
      yield from _ask(
          job, found, found.tasks[side], calls=len(steps) * len(found.views))


def _ask(
    job: judge_programs.Job, found: attacks_lib.Attacks, task: accuracy.Task, *,
    calls: int) -> programs.Programs:
  """Asks the questions of a task `calls` times."""
  for call in found.scorer.programs(
      job.model.params, task.batches, task.positions, task.targets):
    yield programs.program(
        'scoring', call.fn, *call.args, calls=calls * call.calls)
