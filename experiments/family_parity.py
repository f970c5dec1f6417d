"""Errors of each model family against references: a table of the docs.

  python -m experiments.family_parity [--out=FILE]

It needs the extra `parity`. The models are the tiny random ones of
`tests/families.py`.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import tempfile
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np

from experiments.tables import guides
from mansu_jax import quant
from mansu_jax.deployment import bnb
from mansu_jax.models import layout
from mansu_jax.models.io import hf_io
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from tests import families
from tests.circuits import exact
from tests.models import torch_models

_OUT = flags.DEFINE_string('out', '', 'JSON file to write.')
_SHORT = 12  # Tokens of a row where only some of the errors need more.


def _errors(folder: pathlib.Path, family: str, *both: Any) -> dict[str, Any]:
  """Errors of the form that stands for a family.

  Args:
    folder: where to export the model.
    family: its name.
    *both: a torch model, the same in our decoder, and token ids.
  """
  torch_model, model, rows = both
  short = torch_model, model, rows[:, :_SHORT]
  padding = max(torch_models.padding_error(side, *short)
                for side in ('left', 'right'))
  gradients = torch_models.gradient_errors(*short)
  case = exact.Case(families.config(family))
  scores = case.errors_of_scores(case.slopes())
  hf_io.write(folder, model.config, model.params, None)
  real = bnb.read_params(bnb.load(folder, 'nf4'), model.config)
  ours = quant.fake_quantize(
      model.params, 'nf4', layout.block_layout(model.config))
  differing = jax.tree.map(
      lambda a, b: int(np.sum(np.asarray(a) != np.asarray(b))), real, ours)
  bfloat16, of_torch = torch_models.bfloat16_errors(*both)  # Rounds the model.
  return {
      'padding': padding, 'gradients': max(gradients.values()),
      'scores': max(scores.values()), 'bfloat16': bfloat16,
      'bfloat16_of_torch': of_torch,
      'nf4_differing': sum(jax.tree.leaves(differing))}


def main(argv: list[str]) -> None:
  """Measures the errors and prints their table."""
  del argv
  found: dict[str, dict[str, Any]] = {}
  chosen = dict(families.of_each_family())
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    for name, changes in families.CASES:
      family = families.family_of(changes)
      both = torch_models.both(folder / name, **changes)
      entry = found.setdefault(family, {'cases': 0, 'logits': 0.0})
      entry['cases'] += 1
      entry['logits'] = max(
          entry['logits'], torch_models.logits_error(*both))
      if name in chosen:
        entry |= _errors(folder / f'{name}_exported', family, *both)
      logging.info('%s: measured', name)
  record = {
      'families': found, 'environment': environment.describe() | {
          name: importlib.metadata.version(name)
          for name in ('torch', 'transformers', 'bitsandbytes')}}
  if _OUT.value:
    files.write_json(pathlib.Path(_OUT.value), record)
  print(guides.measured(record))


if __name__ == '__main__':
  app.run(main)
