"""Runs for tests, and checks of the weights that they write."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
from typing import Any

from absl import flags
import numpy as np
from safetensors import numpy as safetensors_numpy

from mansu_jax import main
from mansu_jax.circuits import graph
from mansu_jax.config import flags as flags_lib
from mansu_jax.config import mode_checks
from mansu_jax.config import run as config_lib
from mansu_jax.flows import attribute as attribute_lib
from mansu_jax.flows import audit as audit_lib
from mansu_jax.flows import cells
from mansu_jax.flows import compare
from mansu_jax.flows import unlearn as unlearn_flow
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.stages import checks
from mansu_jax.stages.prepare import inputs
from mansu_jax.stages.prepare import quantizer_rules
from tests.reference import quant_naive

_NF4 = np.array(sorted(quant_naive.NF4_VALUES), np.float32)
_MIDDLES = (_NF4[1:] + _NF4[:-1]) / np.float32(2)
_BLOCK = 64
_NOT_AUDITED = (
    '--model=', '--data_text=', '--unlearn_', '--fisher_', '--edit_')


def parse(*args: str) -> config_lib.RunConfig:
  """The config of a command line."""
  values = flags.FlagValues()
  flags_lib.define(values)
  rest = values(['mansu_jax', *args])
  assert len(rest) == 1, rest
  return flags_lib.to_config(values)


def command(*args: str) -> tuple[int, str, str]:
  """Exit status of a command line, and what it writes to stdout and stderr."""
  values = flags.FlagValues()
  flags_lib.define(values)
  rest = values(['mansu_jax', *args])
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = main.main(rest, values)
  return status, out.getvalue(), err.getvalue()


def attribute(root: pathlib.Path, *args: str) -> dict[str, Any]:
  """Attributes into a workdir; returns the record."""
  return attribute_lib.run(
      parse('--mode=attribute', *args, f'--workdir={root}'))


def run(root: pathlib.Path, *args: str) -> dict[str, Any]:
  """Runs into a workdir; returns the record."""
  return unlearn_flow.run(parse(*args, f'--workdir={root}'))


def audit(root: pathlib.Path, *args: str) -> dict[str, Any]:
  """Audits into a workdir; returns the record."""
  return audit_lib.run(parse('--mode=audit', *args, f'--workdir={root}'))


def check_fits(
    config: config_lib.RunConfig, shapes: Any, tokenizer: Any) -> None:
  """Raises ValueError if a run would refuse its flags, data or model."""
  mode_checks.check_unread_flags(config)
  quantizer_rules.check(
      config.quant_schemes, edits=config.method == 'mansu')
  checks.check_model_and_data(config, inputs.read(config), shapes, tokenizer)


def check_flagfile(
    path: pathlib.Path | str, tokenizer: Any = None) -> config_lib.RunConfig:
  """Raises ValueError if its run, or a cell of it, would be refused.

  Args:
    path: of the flagfile.
    tokenizer: for a model that has none.
  """
  config = flags_lib.from_flagfile(str(path))
  _, shapes, own = loading.find_config(config.model)
  check_fits(config, shapes, own or tokenizer)
  if config.mode == 'compare':
    cells.check(compare._cells(
        dataclasses.replace(config, workdir='runs/compare')))
  return config


def audit_flags(
    flags: Sequence[str], base: pathlib.Path, model: pathlib.Path) -> list[str]:
  """Flags of a run -> of the audit of a model on the run's data."""
  return [f'--base={base}', f'--model={model}', *(
      f for f in flags if not f.startswith(_NOT_AUDITED))]


def figures(record: dict[str, Any]) -> dict[str, Any]:
  """A record without the entries that differ between equal runs."""
  record = report.as_json(record)
  return {k: v for k, v in record.items() if k not in ('stages', 'config')}


def sha256(path: pathlib.Path) -> str:
  """Of a file."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Tensors of a model directory in torch's order."""
  return safetensors_numpy.load_file(folder / 'model.safetensors')


def read_circuit(root: pathlib.Path, config: Any) -> graph.Circuit:
  """The circuit of a workdir."""
  return graph.from_json(
      json.loads((root / 'circuit.json').read_text()), config)


def nf4(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Decoded values [out, in] and scales [blocks] of a torch matrix."""
  blocks = matrix.astype(np.float32).reshape(-1, _BLOCK)
  scale = np.abs(blocks).max(1)
  inverse = np.float32(1) / scale
  code = np.searchsorted(_MIDDLES, blocks * inverse[:, None], side='left')
  return (_NF4[code] * scale[:, None]).reshape(matrix.shape), scale


def check_floor(
    test: Any, base: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> int:
  """Each weight is bit-equal or has another NF4 value; returns the moved.

  What stays unquantized (embeddings, norms) has not moved, and no block's
  scale has.
  """
  test.assertEqual(set(got), set(base))
  moved = 0
  for name, before in base.items():
    differs = got[name] != before
    moved += int(differs.sum())
    if '_proj.' not in name:
      test.assertFalse(differs.any(), name)
      continue
    values, scale = nf4(before)
    new_values, new_scale = nf4(got[name])
    np.testing.assert_array_equal(new_scale, scale, err_msg=name)
    np.testing.assert_array_equal(new_values != values, differs, err_msg=name)
  return moved


def check_only_circuit_moved(
    test: Any, base: dict[str, np.ndarray], got: dict[str, np.ndarray],
    circuit: graph.Circuit) -> None:
  """Nothing outside the circuit's units has moved."""
  width = {'q': circuit.heads, 'o': circuit.heads, 'k': circuit.kv_heads,
           'v': circuit.kv_heads}
  for name, before in base.items():
    differs = got[name] != before
    if '_proj.' not in name:
      test.assertFalse(differs.any(), name)
      continue
    layer, kind = int(name.split('.')[2]), name.split('.')[4].split('_')[0]
    chosen = width.get(kind, circuit.neurons)[layer]
    by_column = kind in ('o', 'down')  # Its units are inputs.
    units = differs.T if by_column else differs
    units = units.reshape(chosen.size, -1).any(1)
    test.assertFalse((units & ~chosen).any(), name)
