"""Compares finished runs of one job on several device meshes.

  python -m experiments.bench.meshes WORKDIR OTHER [OTHER ...] [--out=FILE]

The runs have the same flags except `--mesh_*`. The benchmark compares circuits
and their scores, moved weights, and accuracies with those of the first run.
`JAX_NUM_CPU_DEVICES=8` simulates eight devices.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from absl import app
from absl import flags
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.models.io import loading
from mansu_jax.runtime import files

_OUT = flags.DEFINE_string('out', '', 'JSON file for the results.')


def _read(root: pathlib.Path) -> dict[str, Any]:
  """Node scores, weights and record of a finished run."""
  read = lambda name: json.loads((root / name).read_text(encoding='utf-8'))
  record = read('record.json')
  return {
      'nodes': {
          (kind, layer, node): score
          for kind, layers in read('circuit.json')['nodes'].items()
          for layer, nodes in layers.items() for node, score in nodes.items()},
      'weights': tree_paths.flatten(loading.load(root / 'model').params),
      'record': record}


def _compare(
    first: dict[str, Any], other: dict[str, Any], base: dict[str, Any]
) -> dict[str, Any]:
  """Differences between two runs of one base model."""
  moved = differ = 0
  for name, weights in first['weights'].items():
    theirs, before = map(np.asarray, (other['weights'][name], base[name]))
    moved += int(np.sum(np.asarray(weights) != before))
    differ += int(np.sum(np.asarray(weights) != theirs))
  one, two = first['nodes'], other['nodes']
  both = one.keys() & two.keys()
  largest = max(abs(score) for score in one.values())
  return {
      'mesh': other['record']['config']['mesh'],
      'devices': len(other['record']['environment']['devices']),
      'nodes': len(one), 'other_nodes': len(one.keys() ^ two.keys()),
      'scores': max(abs(one[n] - two[n]) for n in both) / largest,
      'moved': moved, 'differ': differ, 'share': differ / moved,
      'accuracy': _accuracies(first['record'], other['record'])}


def _accuracies(
    first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
  """Count, largest difference, and count outside the first's interval."""
  pairs = [
      (found, second['accuracy'][split][model][precision]['value'])
      for split, models in first['accuracy'].items()
      for model, precisions in models.items()
      for precision, found in precisions.items()]
  return {
      'count': len(pairs),
      'largest': max(abs(a['value'] - b) for a, b in pairs),
      'outside_interval': sum(
          not a['interval'][0] <= b <= a['interval'][1] for a, b in pairs)}


def main(argv: list[str]) -> None:
  """Compares all runs with the first; prints and writes differences."""
  if len(argv) < 3:
    raise app.UsageError('Give the workdirs of two or more finished runs.')
  first, *others = (_read(pathlib.Path(path)) for path in argv[1:])
  model = first['record']['config']['model']
  base = tree_paths.flatten(loading.load(model).params)
  found = [_compare(first, other, base) for other in others]
  print(json.dumps(found, indent=1))
  if _OUT.value:
    files.write_json(pathlib.Path(_OUT.value), {
        'model': model, 'environment': first['record']['environment'],
        'runs': found})


if __name__ == '__main__':
  app.run(main)
