"""Stands in for runs: leaves the files that comparisons and searches read."""

from __future__ import annotations

from collections.abc import Callable
import json
import pathlib
from typing import Any

from mansu_jax.config import run as run_config
from mansu_jax.models.io import loading
from mansu_jax.report import write
from mansu_jax.runtime import workdir
from mansu_jax.stages import checks
from tests.report import records


def start(config: run_config.RunConfig) -> pathlib.Path:
  """Opens the workdir as a run does."""
  files = loading.find(config.model).files
  return workdir.open_workdir(config, checks.read(config).hashes | {
      'model': loading.sha256(files)})


def finish(
    root: pathlib.Path, config: run_config.RunConfig,
    change: Callable[[dict[str, Any]], None]) -> None:
  """Writes a changed record."""
  record = write.as_json(records.make())
  record['config'] |= {'seed': config.seed, 'method': config.method,
                       'quant_schemes': ['nf4']}
  change(record)
  (root / 'record.json').write_text(json.dumps(record))
