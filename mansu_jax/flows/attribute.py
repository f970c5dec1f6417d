"""The flow of attribution alone: pairs -> scores -> circuit -> other phrasings.

It writes `attribution.npz`, `circuit.json`, `record.json`, the report and
`flags.txt`. It changes no model and quantizes nothing. A stopped run starts
again from the beginning.
"""

from __future__ import annotations

import functools
from typing import Any

from mansu_jax.config import run as run_config
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import files
from mansu_jax.runtime import sharding
from mansu_jax.runtime import workdir
from mansu_jax.stages import checks
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.circuit import stability
from mansu_jax.stages.judge import results


@sharding.on_mesh
@workdir.locked
def run(config: run_config.RunConfig) -> dict[str, Any]:
  """Scores the pairs, selects a circuit, and writes the workdir.

  Args:
    config: the configuration of a run in attribute mode.

  Returns:
    The record, as in `record.json`.

  Raises:
    ValueError: bad input, found before any long work; or the pairs do not
      elicit the knowledge.
  """
  clock, settings = clock_lib.Clock(), settings_lib.Settings.from_run(config)
  inputs = checks.read(config)
  with clock.stage('load'):
    model = loading.load(
        config.model, hf_io.EXPORT_DTYPES[config.export_dtype],
        check=functools.partial(checks.check_attribute, config, inputs),
        ignore_fields=config.model_ignore_fields)
  root = workdir.open_workdir(
      config, inputs.hashes | {'model': model.source['sha256']})
  if config.profile:
    clock.trace_to(root / 'profile')
  with clock.stage('attribution'):
    scored = attribution.score(settings, inputs.splits, model)
    files.write_npz(root / 'attribution.npz', scored.arrays(model.config))
  with clock.stage('circuit'):
    found = attribution.find(settings, model, scored)
  if scored.others and found.selected is not None:
    with clock.stage('other phrasings'):
      found.report['stability']['phrasings'] = stability.compare_phrasings(
          settings, found.selected, scored.others)
  outputs.write(found, model.config, root)
  record = results.make_attribution_record(
      config=config, inputs=inputs, model=model, scored=scored, found=found,
      stages=clock.stages)
  workdir.write_flags(config, root)
  report.write(record, root)
  return record
