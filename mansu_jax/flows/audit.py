"""The flow of an audit: base and unlearned model, of whatever tool -> params ->
what moved -> attribution -> quantize and compare -> evaluate -> report.

It writes the workdir of a run that unlearns, but for `model/`, which is there
already, and `checkpoints/`: an audit that was stopped starts anew.
"""

from __future__ import annotations

from typing import Any

from absl import logging

from mansu_jax.circuits import eap_ig
from mansu_jax.config import run as run_config
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import sharding
from mansu_jax.runtime import workdir
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.judge import erasure
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import checks
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import model_pair


@sharding.on_mesh
@workdir.locked
def run(config: run_config.RunConfig) -> dict[str, Any]:
  """Audits a model and writes the workdir.

  What the data do not allow is not measured: its part of the record is empty,
  and the properties that rest on it are inconclusive.

  Args:
    config: the run's, in audit mode.

  Returns:
    The record, as in `record.json`.

  Raises:
    ValueError: bad input, before any long work: as `model_pair.load`, or flags or
      data that are wrong.
  """
  clock = clock_lib.Clock()
  inputs = checks.read(config)
  with clock.stage('load'):
    pair = model_pair.load(config, inputs)
  base, unlearned = pair.base, pair.unlearned
  root = workdir.open_workdir(config, inputs.hashes | {
      'base': base.source['sha256'], 'model': pair.account['sha256']})
  if config.profile:
    clock.trace_to(root / 'profile')
  with clock.stage('attribution'):
    found, why = _find_circuit(config, inputs, base)
    if found is not None:
      results.write_circuit(found, base.config, root)
  with clock.stage('evaluate'):
    evaluator = evaluation.Evaluator(config, inputs, base)
    quantize = quantizers.Quantizers(config, inputs, base)
    measured = evaluation.measure_all(
        config, evaluator, quantize, base, unlearned)
    results.write_answers(evaluator, measured, root)
  with clock.stage('erasure'):
    structure = erasure.measure(
        config, inputs, quantize, base, found, unlearned
    ) if found is not None else erasure.not_measured(why)
  with clock.stage('samples'):
    texts = results.samples(config, inputs, quantize, base, unlearned)
  with clock.stage('survival'):
    record = results.make_record(
        config=config, inputs=inputs, quantize=quantize, model=base,
        found=found,
        evaluator=evaluator, measured=measured, structure=structure,
        unlearned=unlearned, answers_in_words=texts, stages=clock.stages,
        changes=pair.changes)
  record |= {'pair': pair.account}
  workdir.write_flags(config, root)
  report.write(record, root)
  return record


def _find_circuit(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    base: loading.LoadedModel) -> tuple[attribution.Found | None, str]:
  """The circuit by attribution on the base, or why there is none."""
  why = attribution.why_none(config, inputs.splits, base.tokenizer)
  if why:
    return None, why
  try:
    return attribution.find(config, inputs, base), ''
  except eap_ig.TooFewAnswered as error:
    logging.warning('There is no circuit: %s', error)
    return None, str(error)
