"""Measures the base and the unlearned model, stage by stage."""

from __future__ import annotations

import pathlib

from mansu_jax import types
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import attacks
from mansu_jax.stages.judge import erasure
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import hidden_share
from mansu_jax.stages.judge import recall
from mansu_jax.stages.judge import results


def run(
    job: results.Job, settings: settings_lib.Settings,
    unlearned: types.Params, root: pathlib.Path, clock: clock_lib.Clock,
    cache: checkpoints.NoCache = checkpoints.NoCache(), *,
    reason_without_circuit: str = '') -> results.Findings:
  """Asks, reads, attacks and describes; writes the answers.

  Args:
    job: what is asked, of which base.
    settings: of attribution; seed and chat form.
    unlearned: full params after unlearning.
    root: folder of the run, for the answers, `*.jsonl`.
    clock: clock of the run.
    cache: keeps each part for a resumed run.
    reason_without_circuit: why the job has no circuit, if it has none.

  Returns:
    The findings, without changes and training.
  """
  config, inputs, model = job.config, job.inputs, job.model
  options, views = config.eval, job.quantize.views()
  with clock.stage('evaluate'):
    measured = evaluation.measure_all(
        job.evaluator, views, model.params, unlearned, cache)
    results.write_answers(job.evaluator, measured, root)
  with clock.stage('generation'):
    recaller = recall.Recaller(
        options, config.data, inputs, model, seed=config.seed)
    recalled = recall.measure(
        recaller, views, model.params, unlearned, resamples=options.bootstrap,
        seed=config.seed, cache=cache)
    recall.write(recalled, root)
  with clock.stage('hidden share'):
    hidden = hidden_share.measure(
        settings, options, inputs, job.quantize, model, unlearned, cache)
    hidden_share.write(hidden, root)
  with clock.stage('attacks'):
    attacked = attacks.measure(
        options, config.data, inputs, job.quantize, model, unlearned,
        seed=config.seed, cache=cache)
    attacks.write(attacked, root)
  with clock.stage('erasure'):
    structure = (
        erasure.not_measured(reason_without_circuit) if job.found is None else
        erasure.measure(settings, options, inputs, job.quantize, model,
                        job.found, unlearned, cache))
  with clock.stage('samples'):
    samples = results.samples(
        inputs, job.quantize, model, unlearned, limit=options.generations,
        seed=config.seed, chat=config.data.chat, cache=cache)
  return results.Findings(
      measured=measured, recalled=recalled.readings, hidden=hidden,
      attacked=attacked.record, structure=structure, samples=samples)
