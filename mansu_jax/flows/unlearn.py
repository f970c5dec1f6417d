"""`--mode=unlearn`: attribute, train the circuit, export, measure, report.

config -> params -> attribution -> circuit -> Fisher -> unlearn loop ->
quantize and compare -> evaluate -> report.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import preemption
from mansu_jax.runtime import sharding
from mansu_jax.runtime import workdir
from mansu_jax.stages import checks
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import erasure
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import quantizer_rules
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import retain_kl
from mansu_jax.stages.train import training


@sharding.on_mesh
@workdir.locked
def run(config: run_config.RunConfig) -> dict[str, Any]:
  """Runs a job and writes its workdir; resumes a stopped one.

  Args:
    config: see `config.flags` for the command line.

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
        check=functools.partial(checks.check_model_and_data, config, inputs))
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
  with checkpoints.StageCache(
      root / 'checkpoints', resume=config.resume) as cache:
    return _run(config, clock, inputs, model, evaluator, quantize, root, cache)


def _run(
    config: run_config.RunConfig, clock: clock_lib.Clock,
    inputs: inputs_lib.Inputs, model: loading.LoadedModel,
    evaluator: evaluation.Evaluator, quantize: quantizers.Quantizers,
    root: pathlib.Path, cache: checkpoints.StageCache) -> dict[str, Any]:
  """The stages that resume from `cache`."""
  with clock.stage('attribution'):
    found = _find_circuit(config, inputs, model, cache)
    outputs.write(found, model.config, root)
  unlearned, trained = _unlearn(
      config, clock, inputs, model, found, root, cache)
  with clock.stage('evaluate'):
    measured = evaluation.measure_all(
        evaluator, quantize.views(), model.params, unlearned, cache)
    results.write_answers(evaluator, measured, root)
  with clock.stage('erasure'):
    structure = erasure.measure(
        settings_lib.Settings.from_run(config), config.eval, inputs, quantize,
        model, found, unlearned, cache)
  with clock.stage('samples'):
    chosen = results.asked_freely(
        inputs, config.eval.generations, seed=config.seed)
    texts = cache.get_or_compute_json('samples', lambda: results.samples(
        chosen, quantize, model, unlearned, chat=config.data.chat))
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


def _find_circuit(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    model: loading.LoadedModel, cache: checkpoints.StageCache
) -> attribution.Found:
  """The circuit; the scores behind it are freed."""
  settings = settings_lib.Settings.from_run(config)
  scored = attribution.score(settings, inputs.splits, model, cache)
  return attribution.find(settings, model, scored, cache)


def _unlearn(
    config: run_config.RunConfig, clock: clock_lib.Clock,
    inputs: inputs_lib.Inputs, model: loading.LoadedModel,
    found: attribution.Found, root: pathlib.Path,
    cache: checkpoints.StageCache) -> tuple[types.Params, dict[str, Any]]:
  """Trains and exports; the full params and the record's training fields."""
  # `_train` returns slices: its views of the whole model are freed before the
  # unlearned one is made.
  merge, trained = _train(config, clock, inputs, model, found, cache)
  with clock.stage('export'):
    unlearned = merge()
    hf_io.write(root / 'model', model.config, unlearned, model.tokenizer,
                export_dtype=config.export_dtype)
  return unlearned, trained


def _train(
    config: run_config.RunConfig, clock: clock_lib.Clock,
    inputs: inputs_lib.Inputs, model: loading.LoadedModel,
    found: attribution.Found, cache: checkpoints.StageCache
) -> tuple[functools.partial, dict[str, Any]]:
  """`() -> full unlearned params`, and the record's training fields."""
  with clock.stage('references'):
    batches = pools.make_batches(
        config.unlearn, config.data, inputs.splits, model, seed=config.seed,
        cache=cache)
    circuit = None if config.circuit.selection == 'all' else found.circuit
    edit = edits.make(
        model, circuit, quantizer_rules.with_fixed_grid(config.quant_schemes),
        quantized_views=config.unlearn.quantizer_in_loop,
        storage_dtype=config.export_dtype, movable=found.movable)
  with clock.stage('fisher'):
    spans, fisher = training.fisher_spans(
        config.fisher, batches, seed=config.seed), None
    if edit.grids and config.edit.projection != 'none':
      fisher = training.circuit_fisher(
          config.fisher, edit, spans, seed=config.seed, cache=cache)
  with clock.stage('unlearn'):
    with preemption.deferred(), cache.steps(
        'unlearn_steps', config.unlearn.save_every) as steps:
      done = cache.get_or_compute('unlearn', lambda: training.unlearn(
          config.unlearn, config.edit, edit, fisher, batches, keep=steps,
          total_weights=tree_paths.count(model.params)),
                                  replaces='unlearn_steps')
    theta = hf_io.as_stored(done['theta'], config.export_dtype)
    kl = retain_kl.measure(edit, fisher, spans, done['history'], theta)
  return functools.partial(edit.merge, theta), results.describe_training(
      done['history'], kl, batches.swapped_account)
