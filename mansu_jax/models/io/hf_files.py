"""Finds the weight files of a Hugging Face directory; safetensors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import safetensors

from mansu_jax.models import families
from mansu_jax.models.io import safetensors_header
from mansu_jax.runtime import files as files_lib
from mansu_jax.runtime import messages

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
PICKLE_SUFFIXES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
_ADAPTER = 'adapter_config.json'
_PACKAGE_SAYS = 'Error while deserializing header: '
_SUFFIX = '.safetensors'
_LONGEST_NAME = 255  # Bytes of a file's name.
_MOST_JSON = 2**26  # Bytes of a JSON file.


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object from a file.

  Raises:
    ValueError: the file is missing, over 64 MiB, not JSON or not an object, or
      an object has two values of a name.
  """
  if not file.is_file():
    if (file.parent / _ADAPTER).is_file():
      raise ValueError(
          f'{file.parent} holds a PEFT adapter ({_ADAPTER}) and no'
          f' {file.name}; wanted a full model. Merge the adapter into its'
          ' base (`merge_and_unload` of peft) and save the result.')
    raise ValueError(
        f'{file.parent} has no {file.name}; wanted a Hugging Face model'
        ' directory with config.json and safetensors. Check the path.')
  size = file.stat().st_size
  if size > _MOST_JSON:
    raise ValueError(
        f'{file} has {size} bytes; wanted at most {_MOST_JSON} bytes of JSON.'
        ' Download it again.')
  try:
    fields = json.loads(
        file.read_text('utf-8'), object_pairs_hook=files_lib.distinct)
  except (ValueError, RecursionError) as error:  # Also bytes not UTF-8.
    raise ValueError(
        f'{file} cannot be read as JSON ({error}); wanted a JSON object.'
        ' Download it again.') from error
  if not isinstance(fields, dict):
    raise ValueError(
        f'{file} contains a {type(fields).__name__}; wanted a JSON object.'
        ' Download it again.')
  return fields


def weight_files(path: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of a directory, in name order.

  Raises:
    ValueError: the directory has only pickles or no weights, a shard is
      missing, or a tensor is not in exactly the shard that the index names.
  """
  if (path / WEIGHTS).is_file():
    return [path / WEIGHTS]
  if not (path / INDEX).is_file():
    _refuse_without_safetensors(path)
  weight_map = read_json(path / INDEX).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(
        f'{path / INDEX} has no weight_map; wanted tensor names mapped to'
        ' files. Download it again.')
  for tensor, name in weight_map.items():
    if not _is_shard_name(name):
      raise ValueError(
          f'{path / INDEX} maps {messages.shorten(tensor)} to'
          f' {messages.shorten(name)}; wanted the name of a .safetensors file'
          ' beside the index. Files elsewhere are not read. Download the index'
          ' again.')
  names = sorted(set(weight_map.values()))
  missing = [n for n in names if not (path / n).is_file()]
  if missing:
    raise ValueError(
        f'{path / INDEX} names {len(names)} shards, of which {len(missing)} are'
        f' missing: {messages.shorten(missing)}. Wanted all shards beside the'
        ' index. Download the missing files.')
  files = [path / n for n in names]
  _check_index(path / INDEX, weight_map, files)
  return files


def _is_shard_name(name: Any) -> bool:
  """Whether an entry of an index names a file in its own directory."""
  return (
      isinstance(name, str) and name.isprintable()
      and len(name.encode()) <= _LONGEST_NAME and '\\' not in name
      and pathlib.PurePath(name).name == name and name.endswith(_SUFFIX))


def _check_index(
    index: pathlib.Path, weight_map: Mapping[str, str],
    files: Sequence[pathlib.Path]) -> None:
  """Raises ValueError unless each tensor is in the shard of the index."""
  stored: dict[str, list[str]] = {}
  for file in files:
    with open_file(file) as handle:
      for name in handle.keys():
        stored.setdefault(name, []).append(file.name)
  ignored = tuple(ending for family in families.FAMILIES.values()
                  for ending in family.ignored_tensors)
  wrong = [name for name in sorted(stored.keys() | weight_map.keys())
           if stored.get(name) != [weight_map.get(name)]
           and not name.endswith(ignored)]
  if wrong:
    listed = weight_map.get(wrong[0], 'no shard')
    found = ' and '.join(stored.get(wrong[0], ['no shard'])[:4])
    raise ValueError(
        f'{index} does not match its shards for {len(wrong)} tensors, such as'
        f' {messages.shorten(wrong[0])}: the index names {listed}, but the'
        f' tensor is in {found}. Wanted each tensor in exactly the shard that'
        ' the index names. Download the checkpoint again.')


def _refuse_without_safetensors(path: pathlib.Path) -> None:
  pickles = sorted(
      p.name for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
  if pickles:
    raise ValueError(
        f'{path} holds pickle checkpoints {messages.shorten(pickles)}; wanted'
        ' safetensors. Reading a pickle can run arbitrary code, so it is'
        ' refused; convert it with `save_pretrained(...,'
        ' safe_serialization=True)`.')
  names = sorted(p.name for p in path.iterdir())
  raise ValueError(
      f'{path} has neither {WEIGHTS} nor {INDEX}; it contains'
      f' {messages.shorten(names)}. Wanted a Hugging Face directory with'
      ' safetensors. Check the path.')


def open_file(file: pathlib.Path) -> Any:
  """Opens a safetensors file; ValueError if it is damaged."""
  try:
    safetensors_header.check(file)  # The package's messages say less.
    return safetensors.safe_open(file, framework='np')
  except (ValueError, safetensors.SafetensorError) as error:
    problem = messages.one_line(str(error)).removeprefix(_PACKAGE_SAYS)
    raise ValueError(
        f'{file} ({file.stat().st_size} bytes) cannot be read as safetensors'
        f' ({problem}); wanted a complete file. It is truncated or damaged;'
        ' download it again.') from error
