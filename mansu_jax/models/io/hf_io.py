"""Reads and writes Hugging Face directories; safetensors only.

`loading.load` reads a whole model; `write` saves one:

    hf_io.write('out', model.config, params, model.tokenizer,
                export_dtype='bfloat16')
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import json
import math
import pathlib
import tempfile
from typing import Any, NamedTuple

import huggingface_hub
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.models import families
from mansu_jax.models.families import family as family_lib
from mansu_jax.models.families import rope
from mansu_jax.models.io import hf_files
from mansu_jax.models.io import hf_tokenizer
from mansu_jax.runtime import files
from mansu_jax.runtime import processes

EXPORT_DTYPES = {
    'float32': np.float32,
    'bfloat16': ml_dtypes.bfloat16,
    'float16': np.float16,
}
# Dtype of stored tensors -> export dtype that represents it.
FLOATS = {'F64': 'float32', 'F32': 'float32', 'F16': 'float16',
          'BF16': 'bfloat16'}

_CONFIG, _GENERATION = 'config.json', 'generation_config.json'
_OF_CODE = frozenset({'auto_map'})  # Names files that are not copied.
_ROWS = 4096  # Rows of a matrix to compare at once.


def read_config(
    path: pathlib.Path, ignore: Collection[str] = ()
) -> config_lib.ModelConfig:
  """Reads `config.json` of a directory.

  Args:
    path: Hugging Face directory.
    ignore: Unknown fields to ignore.

  Raises:
    ValueError: the file is missing, not JSON or not a supported config.
  """
  return read_config_file(path / _CONFIG, ignore)


def read_config_file(
    file: pathlib.Path, ignore: Collection[str] = ()
) -> config_lib.ModelConfig:
  """Reads a config file of any name; see `read_config`."""
  return families.from_hf(hf_files.read_json(file), str(file), ignore)


def read_generation(path: pathlib.Path) -> dict[str, Any] | None:
  """The checked fields of `generation_config.json`, if there is one."""
  if not (file := path / _GENERATION).is_file():
    return None
  fields = hf_files.read_json(file)
  family_lib.check_end_tokens(fields, str(file))
  return fields


class Carried(NamedTuple):
  """What an export keeps of the directory that a model was read from.

  Attributes:
    config: Fields of its `config.json`.
    tokenizer: Its tokenizer files, by name.
  """

  config: dict[str, Any]
  tokenizer: dict[str, bytes]


def read_carried(
    path: pathlib.Path, family: str, ignore: Collection[str] = ()) -> Carried:
  """Reads what an export of a model of a family keeps.

  Fields that the family does not know, and a user vouched for (`ignore`), are
  left out: a quantization, for example, is not that of the exported weights.

  Raises:
    ValueError: a tokenizer file is too large.
  """
  known = frozenset().union(*families.FAMILIES[family].groups()) - _OF_CODE
  fields = rope.without(hf_files.read_json(path / _CONFIG), ignore)
  return Carried({name: value for name, value in fields.items()
                  if name in known}, hf_tokenizer.read_files(path))


def read_params(
    path: pathlib.Path, config: config_lib.ModelConfig, dtype: Any
) -> types.Params:
  """Reads all tensors and stacks them in `dtype`.

  Tied embeddings may be stored twice if both copies are equal.

  Args:
    path: Hugging Face directory.
    config: Config of the model.
    dtype: Dtype of the params.

  Raises:
    ValueError: a file is truncated, tensors are missing, unexpected or of
      another shape, or a dtype is not a float (all found before the weights are
      read); or the copies of tied embeddings differ.
  """
  family = families.FAMILIES[config.family]
  embed, head = (family.names[leaf] for leaf in ('embed', 'lm_head'))
  with contextlib.ExitStack() as stack:
    handles = {}
    for file in hf_files.weight_files(path):
      handle = stack.enter_context(hf_files.open_file(file))
      handles |= {name: handle for name in handle.keys()
                  if not name.endswith(family.ignored_tensors)}
    _check_dtypes(path, handles)
    slices = {name: h.get_slice(name) for name, h in handles.items()}
    if not any(name.startswith(family.prefix) for name in slices):
      slices = {name if name == head else family.prefix + name: one
                for name, one in slices.items()}
    shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
    twice = config.tie_embeddings and head in shapes and (
        shapes[head] == shapes.get(embed))
    if twice:
      del shapes[head]
    assemble.check(shapes, config, family.naming, str(path))
    if twice:
      _check_tied(path, slices, embed, head)
    read = lambda t: slices[t.name][:]
    return assemble.assemble(config, family.naming, read, dtype)


def _check_tied(
    path: pathlib.Path, slices: Mapping[str, Any], embed: str, head: str
) -> None:
  """Raises ValueError if tied matrices differ; reads them in blocks."""
  rows, _ = slices[embed].get_shape()
  for start in range(0, rows, _ROWS):
    stop = min(start + _ROWS, rows)
    if not np.array_equal(*(
        slices[name][start:stop] for name in (embed, head))):
      raise ValueError(
          f'{path} has tie_word_embeddings = True, but {head} differs from'
          f' {embed} from row {start} on; wanted one matrix, or two equal'
          ' ones. Set tie_word_embeddings to false if the model was trained'
          ' with both.')


def _check_dtypes(path: pathlib.Path, handles: Mapping[str, Any]) -> None:
  dtypes = {n: h.get_slice(n).get_dtype() for n, h in handles.items()}
  wrong = {n: d for n, d in dtypes.items() if d not in FLOATS}
  if wrong:
    name, dtype = next(iter(wrong.items()))
    raise ValueError(
        f'{path} stores {len(wrong)} tensors in a dtype that is not a float,'
        f' such as {name} in {dtype}; wanted one of {list(FLOATS)}. Quantized'
        ' checkpoints are not supported; use the full-precision model.')


def stored_dtypes(files: Sequence[pathlib.Path]) -> tuple[str, ...]:
  """The export dtypes of the weights in the files, that of most first.

  Raises:
    ValueError: a file is truncated.
  """
  sizes: dict[str, int] = {}
  for file in files:
    with hf_files.open_file(file) as handle:
      for name in handle.keys():
        tensor = handle.get_slice(name)
        kind = FLOATS.get(tensor.get_dtype(), 'float32')
        sizes[kind] = sizes.get(kind, 0) + math.prod(tensor.get_shape())
  return tuple(sorted(sizes, key=sizes.get, reverse=True)) or ('float32',)


def check_export(path: pathlib.Path, export_dtype: str) -> None:
  """Checks the arguments of `write`; call this before long work.

  Raises:
    ValueError: the dtype is unknown, or `path` is a file or a non-empty
      directory without a model.
  """
  if export_dtype not in EXPORT_DTYPES:
    raise ValueError(
        f'Export dtype is {export_dtype!r}; wanted one of'
        f' {list(EXPORT_DTYPES)}. Correct --export_dtype.')
  if path.exists() and not path.is_dir():
    raise ValueError(
        f'{path} is a file; wanted a directory to write the model to. Give'
        ' another path.')
  if path.is_dir() and any(path.iterdir()) and not (path / _CONFIG).is_file():
    raise ValueError(
        f'{path} is not empty and holds no model; wanted a new, empty or'
        ' model directory, because the export replaces it. Give another path.')


def as_stored(params: types.Params, export_dtype: str) -> types.Params:
  """Rounds params to the export dtype, in their own dtype.

  The result equals the params that a reader of the exported file gets.

  Args:
    params: Params, or any nested dict of float arrays.
    export_dtype: See `write`.

  Raises:
    ValueError: a finite weight overflows in `export_dtype`.

  Example:
    >>> as_stored({'w': jnp.array([1.001])}, 'bfloat16')
    {'w': Array([1.], dtype=float32)}
  """
  dtype = EXPORT_DTYPES[export_dtype]

  def store(leaf: types.Array, name: str) -> types.Array:
    if leaf.dtype == dtype:
      return leaf
    stored = leaf.astype(dtype).astype(leaf.dtype)
    lost = int(jnp.sum(jnp.isfinite(leaf) & ~jnp.isfinite(stored)))
    if lost:
      raise ValueError(
          f'{lost} weights of {name} are too large for {export_dtype}; wanted'
          ' finite weights. Give --export_dtype=float32 or bfloat16.')
    return stored

  return tree_paths.unflatten({
      name: store(leaf, name)
      for name, leaf in tree_paths.flatten(params).items()})


def write(
    path: str | pathlib.Path,
    config: config_lib.ModelConfig,
    params: types.Params,
    tokenizer: types.PretrainedTokenizer | None,
    *,
    export_dtype: str = 'float32',
    shard_gb: float = 5.0,
    generation: Mapping[str, Any] | None = None,
    carried: Carried | None = None,
) -> None:
  """Writes a directory that `AutoModelForCausalLM.from_pretrained` loads.

  The export is atomic: files are written to a temporary directory, which then
  replaces `path`. Weights of over `shard_gb` are sharded, with an
  index. Collective: every process must call it; the primary process writes.

  Args:
    path: Target directory. A model directory at this path is replaced.
    config: Config of the model.
    params: Params of the model, rounded to nearest even in `export_dtype`.
    tokenizer: A transformers tokenizer, or None to write none.
    export_dtype: `float32`, `bfloat16` or `float16`.
    shard_gb: Most GB (10^9 bytes) of weights in a file.
    generation: Fields of a `generation_config.json`, or None to write none.
    carried: Config fields and tokenizer files to keep; None: they are made from
      `config` and `tokenizer`.

  Raises:
    ValueError: as `check_export`; or params or `carried` do not match the
      config.
    OSError: the disk is full, or the directory is not writable.

  Example:
    >>> import jax
    >>> from mansu_jax.models.io import loading
    >>> config = config_lib.ModelConfig(
    ...     vocab_size=97, d_model=16, num_layers=2, num_heads=4,
    ...     num_kv_heads=2, d_head=4, d_ff=32)
    >>> params = decoder.init(config, jax.random.key(0))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / 'model'
    >>> write(path, config, params, tokenizer=None)
    >>> sorted(file.name for file in path.iterdir())
    ['config.json', 'model.safetensors']
    >>> loading.load(str(path)).config == config
    True
  """
  path = pathlib.Path(path)
  processes.broadcast_from_primary(lambda: check_export(path, export_dtype))
  tree_paths.check_same_structure(params, decoder.abstract(config), 'Params')
  with _replaced(path) as new:
    try:
      _write_weights(
          new, config, params, EXPORT_DTYPES[export_dtype],
          round(shard_gb * 10**9))
    except safetensors.SafetensorError as error:
      raise OSError(f'{path} cannot be written ({error})') from error

    def write_rest():
      fields = _config_fields(config, export_dtype, carried)
      (new / _CONFIG).write_text(json.dumps(fields, indent=2) + '\n')
      if generation is not None:
        (new / _GENERATION).write_text(json.dumps(generation, indent=2) + '\n')
      hf_tokenizer.write(new, tokenizer, carried.tokenizer if carried else {})
      for file in new.iterdir():
        files.share(file)

    processes.broadcast_from_primary(write_rest)


def _config_fields(
    config: config_lib.ModelConfig, export_dtype: str, carried: Carried | None
) -> dict[str, Any]:
  made = families.to_hf(config, export_dtype)
  if carried is None:
    return made
  dtypes = carried.config.keys() & {'dtype', 'torch_dtype'} or {'torch_dtype'}
  fields = {name: made[name] for name in ('architectures', 'model_type')}
  fields |= carried.config | dict.fromkeys(sorted(dtypes), export_dtype)
  if families.from_hf(fields, 'The carried config') != config:
    raise ValueError('The fields to carry over are of another model config.')
  return fields


@contextlib.contextmanager
def _replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary directory that replaces `path` if nothing fails.

  Collective: every process must enter it; the primary process owns it.
  """
  with contextlib.ExitStack() as files:
    def make():
      path.parent.mkdir(parents=True, exist_ok=True)
      scratch = files.enter_context(tempfile.TemporaryDirectory(
          prefix=f'.{path.name}.', dir=path.parent))
      (pathlib.Path(scratch) / 'new').mkdir()
      return pathlib.Path(scratch)

    scratch = processes.broadcast_from_primary(make)
    yield scratch / 'new'

    def replace():
      if path.exists():
        path.rename(scratch / 'old')
      (scratch / 'new').rename(path)

    processes.broadcast_from_primary(replace)


def _write_weights(
    path: pathlib.Path, config: config_lib.ModelConfig, params: types.Params,
    dtype: Any, most: int) -> None:
  """Writes one file, or shards and an index; the host stores one at a time."""
  split = huggingface_hub.split_state_dict_into_shards_factory(
      {t.name: t for t in assemble.tensors(config, families.naming(config))},
      get_storage_size=lambda t: math.prod(t.shape) * np.dtype(dtype).itemsize,
      filename_pattern=hf_files.WEIGHTS.replace('.', '{suffix}.'),
      max_shard_size=most)
  file_of = split.tensor_to_filename
  parts: dict[str, dict[str, np.ndarray]] = {}
  for tensor, layers in assemble.layers(
      config, families.naming(config), params):
    name = file_of[tensor.name]
    part = parts.setdefault(name, {})
    part[tensor.name] = (  # Other processes only take part in the gather.
        assemble.to_torch(
            [x.astype(dtype, copy=False) for x in layers], tensor)
        if processes.is_primary() else None)
    if len(part) == len(split.filename_to_tensors[name]):
      processes.broadcast_from_primary(
          lambda name=name: safetensors_numpy.save_file(
              parts[name], path / name, metadata={'format': 'pt'}))
      del parts[name], part
  if split.is_sharded:
    index = {'metadata': split.metadata, 'weight_map': file_of}
    processes.broadcast_from_primary(lambda: (path / hf_files.INDEX).write_text(
        json.dumps(index, indent=2, sort_keys=True) + '\n'))
