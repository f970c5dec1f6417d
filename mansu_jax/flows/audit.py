"""`--mode=audit`: measure a model that any tool unlearned against its base.

base and unlearned model -> weight changes -> attribution -> evaluate ->
erasure -> report.

An audit writes the same workdir as a run, without `model/`, and resumes like a
run.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from mansu_jax.config import run as run_config
from mansu_jax.report import write as report
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import sharding
from mansu_jax.runtime import workdir
from mansu_jax.stages import checks
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import judging
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import model_pair


@sharding.on_mesh
@workdir.locked
def run(config: run_config.RunConfig) -> dict[str, Any]:
  """Audits a model and writes the workdir.

  Measures that the given data do not allow are left empty in the record, and
  the properties that need them are inconclusive.

  Args:
    config: the run's, in audit mode.

  Returns:
    The record, as in `record.json`.

  Raises:
    ValueError: bad flags, data or models, found before any long work.
  """
  clock, settings = clock_lib.Clock(), settings_lib.Settings.from_run(config)
  inputs = checks.read(config)
  with clock.stage('load'):
    pair = model_pair.load(
        config.base, config.model, inputs, export_dtype=config.export_dtype,
        chat=config.data.chat,
        check=functools.partial(checks.check_audit, config, inputs),
        ignore_fields=config.model_ignore_fields)
  base, unlearned = pair.base, pair.unlearned
  root = workdir.open_workdir(config, inputs.hashes | {
      'base': base.source['sha256'], 'model': pair.summary['sha256']})
  workdir.record_environment(root)
  if config.profile:
    clock.trace_to(root / 'profile')
  with checkpoints.StageCache(
      root / 'checkpoints', resume=config.resume) as cache:
    with clock.stage('attribution'):
      found, reason = attribution.run_if_possible(
          settings, inputs.splits, base, cache, cad_pairs=config.eval.cad_pairs)
      if found is not None:
        outputs.write(found, base.config, root)
    job = results.Job(
        config=config, inputs=inputs, model=base, found=found,
        quantize=quantizers.Quantizers(
            config.quant_schemes, base, calibration_texts=inputs.calibration,
            calibration_tokens=config.eval.calibration_tokens),
        evaluator=evaluation.Evaluator(config.eval, config.data, inputs, base))
    findings = judging.run(
        job, settings, unlearned, root, clock, cache,
        reason_without_circuit=reason)
    with clock.stage('survival'):
      record = results.make_record(
          job, dataclasses.replace(findings, changes=pair.changes), unlearned,
          clock.stages, workdir.earlier_environments(root))
    record |= {'pair': pair.summary}
    workdir.write_flags(config, root)
    report.write(record, root)
  return record
