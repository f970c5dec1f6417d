"""Finds the weight files of a Hugging Face directory; safetensors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import safetensors

from mansu_jax.models import families

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
PICKLE_SUFFIXES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
_ADAPTER = 'adapter_config.json'


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object from a file.

  Raises:
    ValueError: the file is missing, not JSON or not an object.
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
  try:
    fields = json.loads(file.read_text('utf-8'))
  except (ValueError, RecursionError) as error:  # Also bytes not UTF-8.
    raise ValueError(
        f'{file} is not JSON ({error}); wanted a JSON object. Download it'
        ' again.') from error
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
  names = sorted(set(map(str, weight_map.values())))
  outside = [n for n in names if pathlib.PurePath(n).name != n]
  missing = [n for n in names if not (path / n).is_file()]
  if outside or missing:
    raise ValueError(
        f'{path / INDEX} names {len(names)} shards; {missing} are missing, and'
        f' {outside} are outside the directory; wanted all shards beside the'
        ' index. Download the missing files.')
  files = [path / n for n in names]
  _check_index(path / INDEX, weight_map, files)
  return files


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
    found = ' and '.join(stored.get(wrong[0], ['no shard']))
    raise ValueError(
        f'{index} does not match its shards for {len(wrong)} tensors, such as'
        f' {wrong[0]!r}: the index names {listed}, but the tensor is in'
        f' {found}. Wanted each tensor in exactly the shard that the index'
        ' names. Download the checkpoint again.')


def _refuse_without_safetensors(path: pathlib.Path) -> None:
  pickles = sorted(
      p.name for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
  if pickles:
    raise ValueError(
        f'{path} holds pickle checkpoints {pickles}; wanted safetensors.'
        ' Reading a pickle can run arbitrary code, so it is refused; convert it'
        ' with `save_pretrained(..., safe_serialization=True)`.')
  raise ValueError(
      f'{path} has neither {WEIGHTS} nor {INDEX}; it contains'
      f' {sorted(p.name for p in path.iterdir())}. Wanted a Hugging Face'
      ' directory with safetensors. Check the path.')


def open_file(file: pathlib.Path) -> Any:
  """Opens a safetensors file; ValueError if it is damaged."""
  try:
    return safetensors.safe_open(file, framework='np')
  except safetensors.SafetensorError as error:
    raise ValueError(
        f'{file} ({file.stat().st_size} bytes) cannot be read as safetensors'
        f' ({error}); wanted a complete file. It is truncated or damaged;'
        ' download it again.') from error
