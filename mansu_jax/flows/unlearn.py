"""`--mode=unlearn`: attribute, train the circuit, export, measure, report.

config -> params -> attribution -> circuit -> Fisher -> unlearn loop ->
quantize and compare -> evaluate -> report.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

from absl import logging

from mansu_jax.config import run as run_config
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import sharding
from mansu_jax.runtime import workdir
from mansu_jax.stages import checks
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as circuit_settings
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import judging
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import answer_layers
from mansu_jax.stages.prepare import quantizer_rules
from mansu_jax.stages.train import settings as train_settings
from mansu_jax.stages.train import unlearning


@sharding.on_mesh
@workdir.locked
def run(
    config: run_config.RunConfig, *, shared: pathlib.Path | None = None
) -> dict[str, Any]:
  """Runs a job and writes its workdir; resumes a stopped one.

  Args:
    config: see `config.flags` for the command line.
    shared: folder of what follows from the base alone, for runs that share it;
      None: the run's own.

  Returns:
    The record, as in `record.json`.

  Raises:
    ValueError: bad input, found before any long work; or the loop diverged.
  """
  clock = clock_lib.Clock()
  inputs = checks.read(config)
  with clock.stage('load'):
    model = loading.load(
        config.model, hf_io.EXPORT_DTYPES[config.export_dtype],
        check=functools.partial(checks.check_model_and_data, config, inputs),
        ignore_fields=config.model_ignore_fields)
    if model.stored in hf_io.EXPORT_DTYPES and (
        model.stored != config.export_dtype):
      logging.info(
          '%s holds %s, and the exported model will hold %s.'
          ' --export_dtype=%s keeps the type.', config.model, model.stored,
          config.export_dtype, model.stored)
    evaluator = evaluation.Evaluator(config.eval, config.data, inputs, model)
    quantize = quantizers.Quantizers(
        config.quant_schemes, model, calibration_texts=inputs.calibration,
        calibration_tokens=config.eval.calibration_tokens,
        guarantee=quantizer_rules.guaranteed(
            config.quant_schemes, config.edit.floor))
  root = workdir.open_workdir(
      config, inputs.hashes | {'model': model.source['sha256']})
  workdir.record_environment(root)
  if config.profile:
    clock.trace_to(root / 'profile')
  settings = circuit_settings.Settings.from_run(config)
  with checkpoints.StageCache(
      root / 'checkpoints', resume=config.resume, shared=shared) as cache:
    if answer_layers.is_needed(config):
      with clock.stage('mover layer'):
        settings = settings.with_layers(answer_layers.find(
            inputs.splits, model, seed=config.seed, chat=config.data.chat,
            cache=cache), model.config.num_layers)
    with clock.stage('attribution'):
      found = attribution.run(settings, inputs.splits, model, cache)
      outputs.write(found, model.config, root)
    unlearned, trained = unlearning.run(
        train_settings.Settings.from_run(
            config, inputs.splits, found.circuit), inputs.splits, model, found,
        settings.layers and settings.layers.layer,
        root / 'model', clock, cache)
    job = results.Job(
        config=config, inputs=inputs, quantize=quantize, model=model,
        evaluator=evaluator, found=found)
    findings = judging.run(job, settings, unlearned, root, clock, cache)
    with clock.stage('survival'):
      record = results.make_record(
          job, dataclasses.replace(
              findings, training=results.describe_training(*trained)),
          unlearned, clock.stages, workdir.earlier_environments(root))
    workdir.write_flags(config, root)
    report.write(record, root)
  return record
