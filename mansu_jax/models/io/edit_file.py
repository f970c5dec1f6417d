"""The edit alone: the weights that differ between two models, as a file.

A safetensors file holds, for each tensor that differs, the flat positions of
the weights that moved, `NAME.index`, and the exclusive or of their bits before
and after, `NAME.bits`. So one file turns the base into the unlearned model and
back, bit for bit. Its metadata names the type of the weights and the SHA-256 of
every tensor before and after, so that no other model is edited.

Example:

    edit_file.write('edit.safetensors', config, base, unlearned, 'float32')
    params = edit_file.apply('edit.safetensors', loading.load('base'))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models import families
from mansu_jax.models.io import hf_files
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import files
from mansu_jax.runtime import processes

_FORMAT = 'mansu_jax edit 1'
_SIDES = ('before', 'after')
_TYPES = 'I32', 'I64', 'U16', 'U32'  # Of positions and bits.


class Edit(NamedTuple):
  """A file that was read.

  Attributes:
    where: Its path.
    dtype: Type of the weights, a key of `hf_io.EXPORT_DTYPES`.
    sums: `{tensor: {'before': SHA-256, 'after': SHA-256}}`.
    moved: `{tensor: (positions [m], exclusive or of the bits [m])}`.
  """

  where: str
  dtype: str
  sums: dict[str, dict[str, str]]
  moved: dict[str, tuple[np.ndarray, np.ndarray]]


def write(
    path: str | pathlib.Path, config: config_lib.ModelConfig,
    base: types.Params, edited: types.Params, export_dtype: str) -> None:
  """Writes what turns a model into another, atomically.

  Collective: every process must call it; the primary process writes. The host
  stores one layer of each model at a time, and the edit. Leaves that both
  models share are read once.

  Args:
    path: Target file; an existing file is replaced.
    config: Config of both models.
    base: Params before the edit.
    edited: Params after it.
    export_dtype: Type of the exported models, whose bits are compared.

  Raises:
    OSError: the disk is full, or the folder is not writable.
  """
  path, sums, moved = pathlib.Path(path), {}, {}
  flat, changed = tree_paths.flatten(base), tree_paths.flatten(edited)
  differs = lambda tensor: any(
      flat[leaf] is not changed[leaf] for leaf in tensor.leaves)
  others = _tensors(config, edited, export_dtype, differs)
  for tensor, before in _tensors(config, base, export_dtype):
    after = next(others)[1] if differs(tensor) else before
    if not processes.is_primary():
      continue  # It only takes part in the gathers.
    name, total = tensor.name, _sum(before)
    sums[name] = {'before': total,
                  'after': total if after is before else _sum(after)}
    change = _bits(before) ^ _bits(after)
    index = np.flatnonzero(change)
    if index.size:
      small = change.size <= np.iinfo(np.int32).max
      moved[f'{name}.index'] = index.astype(np.int32 if small else np.int64)
      moved[f'{name}.bits'] = change.reshape(-1)[index]
  processes.broadcast_from_primary(lambda: _save(
      path, moved, {'format': _FORMAT, 'dtype': export_dtype,
                    'sha256': json.dumps(sums, sort_keys=True)}))


def _save(
    path: pathlib.Path, moved: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
  try:
    with files.replacing(path) as temporary:
      safetensors_numpy.save_file(moved, temporary, metadata=metadata)
      files.share(temporary)
  except safetensors.SafetensorError as error:
    raise OSError(f'{path} cannot be written ({error})') from error


def read(path: str | pathlib.Path) -> Edit:
  """Reads a file.

  Raises:
    ValueError: the file is missing, damaged or no edit.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(
        f'There is no file {str(path)!r}; wanted the edit.safetensors of a run.'
        ' Check the path.')
  with hf_files.open_file(path) as file:
    metadata, names = file.metadata() or {}, set(file.keys())
    dtype, sums = metadata.get('dtype'), _read_sums(metadata)
    if metadata.get('format') != _FORMAT or sums is None or (
        dtype not in hf_io.EXPORT_DTYPES):
      raise ValueError(
          f'{path} is no edit; wanted a file with the format {_FORMAT!r}, such'
          ' as the edit.safetensors of a run. Check the path.')
    values = {name: file.get_tensor(name) for name in names
              if file.get_slice(name).get_dtype() in _TYPES}
  moved = {}
  bits = _bits(np.zeros((), hf_io.EXPORT_DTYPES[dtype])).dtype
  for name in sorted({n.rpartition('.')[0] for n in names}):
    index, change = (values.get(f'{name}.{part}') for part in ('index', 'bits'))
    parts = {n for n in names if n.rpartition('.')[0] == name}
    fits = name in sums and index is not None and change is not None and (
        len(parts) == 2) and (
        index.ndim == 1 and index.size and index.shape == change.shape
        and index.dtype.kind == 'i' and change.dtype == bits
        and np.all(np.diff(index) > 0) and index[0] >= 0)
    if not fits:
      raise ValueError(
          f'{path} has a damaged edit of the tensor {name!r}; wanted ascending'
          ' positions and as many bits. Copy the file again.')
    moved[name] = index, change
  return Edit(str(path), dtype, sums, moved)


def _read_sums(metadata: Mapping[str, str]) -> dict[str, Any] | None:
  try:
    sums = json.loads(metadata.get('sha256', ''))
  except (ValueError, RecursionError):
    return None
  fits = isinstance(sums, dict) and all(
      isinstance(one, dict) and one.keys() == set(_SIDES)
      for one in sums.values())
  return sums if fits else None


def apply(
    path: str | pathlib.Path | Edit, model: loading.LoadedModel, *,
    reverse: bool = False) -> types.Params:
  """Edits a model, or takes the edit back.

  Args:
    path: The file, or what `read` returned.
    model: The base, or the edited model with `reverse`; loaded in any type that
      holds the file's exactly.
    reverse: Whether to take the edit back.

  Returns:
    Params in the file's type.

  Raises:
    ValueError: as `read`; or a tensor is not that of the file, before the edit
      or after it.
  """
  edit = path if isinstance(path, Edit) else read(path)
  config, dtype = model.config, hf_io.EXPORT_DTYPES[edit.dtype]
  naming = families.naming(config)
  _check_names(edit, {t.name for t in assemble.tensors(config, naming)})
  source, target = reversed(_SIDES) if reverse else _SIDES
  values = _tensors(config, model.params, edit.dtype)

  def edited(tensor: assemble.Tensor) -> np.ndarray:
    name, (_, found) = tensor.name, next(values)
    _check_sum(edit, name, source, found)
    if name not in edit.moved:
      return found
    index, change = edit.moved[name]
    if index[-1] >= found.size:
      raise ValueError(
          f'{edit.where} has positions up to {index[-1]} of {name}, which has'
          f' {found.size} weights. Copy the file again.')
    bits = _bits(found).reshape(-1).copy()
    bits[index] ^= change
    found = bits.view(found.dtype).reshape(found.shape)
    _check_sum(edit, name, target, found)
    return found

  return assemble.assemble(config, naming, edited, dtype)


def _check_names(edit: Edit, names: set[str]) -> None:
  other = sorted(names ^ edit.sums.keys())
  if other:
    raise ValueError(
        f'{edit.where} is of a model with other tensors: {other[:4]} are in one'
        ' of them only; wanted the same names. Give the model that the edit was'
        ' made for.')


def _check_sum(edit: Edit, name: str, side: str, values: np.ndarray) -> None:
  if _sum(values) != edit.sums[name][side]:
    raise ValueError(
        f'The tensor {name} is not the one that {edit.where} has'
        f' {side} its edit, as {edit.dtype}; wanted equal bits. Give the model'
        ' that the edit was made for, with --apply_reverse if it is edited.')


def _tensors(
    config: config_lib.ModelConfig, params: types.Params, export_dtype: str,
    wanted: Callable[[assemble.Tensor], bool] = lambda tensor: True
) -> Iterator[tuple[assemble.Tensor, np.ndarray]]:
  """Yields the tensors of an exported model that are wanted, with values."""
  dtype = hf_io.EXPORT_DTYPES[export_dtype]
  for tensor, layers in assemble.layers(
      config, families.naming(config), params, wanted):
    yield tensor, assemble.to_torch(
        [np.asarray(x).astype(dtype, copy=False) for x in layers], tensor)


def _bits(values: np.ndarray) -> np.ndarray:
  return values.view(f'u{values.dtype.itemsize}')


def _sum(values: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()
