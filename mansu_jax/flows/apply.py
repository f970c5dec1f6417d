"""The flow of an edit file: a base and an edit -> the unlearned model, or back.

It writes `model/` and `flags.txt`.
"""

from __future__ import annotations

import pathlib

from mansu_jax.config import run as run_config
from mansu_jax.models.io import edit_file
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import processes
from mansu_jax.runtime import sharding
from mansu_jax.runtime import workdir


@sharding.on_mesh
@workdir.locked
def run(config: run_config.RunConfig) -> pathlib.Path:
  """Edits a model as a run did, or takes the edit back.

  Args:
    config: the configuration of a run in apply mode.

  Returns:
    The folder of the model that was written.

  Raises:
    ValueError: there is no edit, workdir or model, or a tensor is not the one
      that was edited; then nothing is written.
  """
  clock, path = clock_lib.Clock(), config.apply.edit
  edit = processes.raise_on_all(lambda: edit_file.read(path))
  hashes = {'edit': loading.sha256([path])}
  root = workdir.check_workdir(config, hashes)
  processes.broadcast_from_primary(
      lambda: hf_io.check_export(root / 'model', edit.dtype))
  with clock.stage('load'):
    model = loading.load(  # As the run did.
        config.base, hf_io.EXPORT_DTYPES[edit.dtype],
        ignore_fields=config.model_ignore_fields)
  with clock.stage('edit'):
    params = edit_file.apply(edit, model, reverse=config.apply.reverse)
  workdir.open_workdir(config, hashes | {'base': model.source['sha256']})
  with clock.stage('export'):
    hf_io.write(root / 'model', model.config, params, model.tokenizer,
                export_dtype=edit.dtype, shard_gb=config.export_shard_gb,
                generation=model.generation, carried=model.carried)
  workdir.write_flags(config, root)
  return root / 'model'
