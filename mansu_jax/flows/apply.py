"""The flow of an edit file: a base and an edit -> the unlearned model, or back.

It writes `model/`, with a model card, and `flags.txt`.
"""

from __future__ import annotations

import pathlib

from mansu_jax.config import run as run_config
from mansu_jax.models.io import edit_file
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.report import words
from mansu_jax.runtime import clock as clock_lib
from mansu_jax.runtime import files
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
  target = pathlib.Path(config.workdir) / 'model'
  if config.workdir and target.resolve() == pathlib.Path(config.base).resolve():
    raise ValueError(
        f'--base={config.base} is the folder that --workdir={config.workdir}'
        ' writes; wanted another, so that the base is kept. Give a new folder.')
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
  card = _card(edit, hashes['edit'], model.source, config.apply.reverse)
  processes.broadcast_from_primary(
      lambda: files.write_text(root / 'model' / 'README.md', card))
  workdir.write_flags(config, root)
  return root / 'model'


def _card(
    edit: edit_file.Edit, sha256: str, source: dict[str, str], reverse: bool
) -> str:
  """The model card: of what model and edit the model is made."""
  name, kind = words.model_name(source), source['kind']
  moved = sum(index.size for index, _ in edit.moved.values())
  what = 'taken out of' if reverse else 'made in'
  lines = ['---', 'tags:', '- mansu',
           *['- machine-unlearning'] * (not reverse),
           *[f'base_model: {name}'] * (kind == 'hub'), '---', '',
           f'# An edit {what} {name}', '',
           f'The edit moves {moved:,} weights of {len(edit.moved)} tensors, in'
           f' {edit.dtype}. The SHA-256 of every tensor, before and after, was'
           ' that which the edit names.', '',
           '| | SHA-256 |', '| --- | --- |',
           f'| the edit, `{pathlib.PurePath(edit.where).name}` | `{sha256}` |',
           f'| the weights before, `{name}` | `{source["sha256"]}` |', '',
           'What the edit forgets, and how that was measured, is in the card of'
           ' the model whose run wrote the edit.', '']
  return '\n'.join(lines)
