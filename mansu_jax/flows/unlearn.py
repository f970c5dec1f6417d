"""The flow: config -> params -> attribution -> circuit -> Fisher -> chain ->
loop -> quantize and compare -> evaluate -> report."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from mansu_jax.config import run as run_config
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import preemption
from mansu_jax.runtime import sharding
from mansu_jax.runtime import workdir
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.judge import erasure
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import checks
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import retain_kl
from mansu_jax.stages.train import training


@sharding.on_mesh
@workdir.locked
def run(config: run_config.RunConfig) -> dict[str, Any]:
  """Runs a job and writes its workdir.

  Args:
    config: the run's; see `run_flags` for the command line.

  Returns:
    The record, as in `record.json`.

  Raises:
    ValueError: bad input, before any long work; or a run that went wrong.
  """
  clock = clock_lib.Clock()
  inputs = checks.read(config)
  with clock.stage('load'):
    model = loading.load(
        config.model, hf_io.EXPORT_DTYPES[config.export_dtype],
        check=functools.partial(checks.check_model_and_data, config, inputs))
    evaluator = evaluation.Evaluator(config, inputs, model)
    quantize = quantizers.Quantizers(config, inputs, model)
  root = workdir.open_workdir(
      config, inputs.hashes | {'model': model.source['sha256']})
  workdir.record_environment(root)
  if config.profile:
    clock.trace_to(root / 'profile')
  with checkpoints.StageCache(
      root / 'checkpoints', resume=config.resume) as cache:
    return _run(config, clock, inputs, model, evaluator, quantize, root, cache)


def _run(
    config: run_config.RunConfig, clock: clock_lib.Clock, inputs: Any,
    model: Any, evaluator: evaluation.Evaluator,
    quantize: quantizers.Quantizers, root: pathlib.Path,
    cache: checkpoints.StageCache) -> dict[str, Any]:
  """What can go on after a stop, each part where it was left."""
  with clock.stage('attribution'):
    found = attribution.find(config, inputs, model, cache)
    results.write_circuit(found, model.config, root)
  with clock.stage('references'):
    batches = training.make_batches(config, inputs, model, cache)
    edit = edits.make(config, model, found.circuit, found.movable)
  with clock.stage('fisher'):
    fisher = training.circuit_fisher(config, edit, batches, cache)
  with clock.stage('unlearn'):
    theta, trained = _train(config, model, edit, fisher, batches, cache)
    merge = edit.merge
    del edit, batches, fisher  # The views' weights, before another model's.
    unlearned = merge(theta)
    del merge, theta
  with clock.stage('export'):
    results.export(config, model, unlearned, root)
  with clock.stage('evaluate'):
    measured = evaluation.measure_all(
        config, evaluator, quantize, model, unlearned, cache)
    results.write_answers(evaluator, measured, root)
  with clock.stage('erasure'):
    structure = erasure.measure(
        config, inputs, quantize, model, found, unlearned, cache)
  with clock.stage('samples'):
    texts = cache.get_or_compute_json('samples', lambda: results.samples(
        config, inputs, quantize, model, unlearned))
  with clock.stage('survival'):
    record = results.make_record(
        config=config, inputs=inputs, quantize=quantize, model=model,
        found=found, evaluator=evaluator, measured=measured,
        structure=structure, unlearned=unlearned, answers_in_words=texts,
        stages=clock.stages, training=trained,
        earlier=workdir.earlier_environments(root))
  workdir.write_flags(config, root)
  report.write(record, root)
  return record


def _train(
    config: run_config.RunConfig, model: Any, edit: edits.Edit, fisher: Any,
    batches: Any, cache: checkpoints.StageCache) -> tuple[Any, dict[str, Any]]:
  """The trained weights as they are stored, and the record's account."""
  with preemption.deferred(), cache.steps(
      'unlearn_steps', config.unlearn.save_every) as steps:
    done = cache.get_or_compute('unlearn', lambda: training.unlearn(
        config, edit, fisher, batches, model, keep=steps),
                     replaces='unlearn_steps')
  theta = hf_io.as_stored(done['theta'], config.export_dtype)
  kl = retain_kl.measure(config, edit, fisher, batches, done['history'], theta)
  return theta, results.trained(done['history'], kl, batches.swapped_account)
