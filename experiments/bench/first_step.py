"""Scores, Fisher and first gradients of a run, on several meshes of devices.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu \\
      python -m experiments.bench.first_step [--job=FLAGFILE]
      [--override=FLAG ...] [--mesh=DATA,FSDP,TENSOR ...] [--out=F]

All before a threshold turns rounding into whole bins: attribution scores of all
nodes, the Fisher of the circuit's weights, and gradients of the first step at
each view, on the circuit that one device finds. Differences are of the largest
entry of the array. Two cores take 3 minutes a mesh on SmolLM2-135M.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.config import flags as run_flags
from mansu_jax.config import run as run_config
from mansu_jax.models.io import loading
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.runtime import sharding
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import training

_JOB = flags.DEFINE_string(
    'job', 'experiments/quickstart.flags', 'Flagfile of the run.')
_OVERRIDES = flags.DEFINE_multi_string(
    'override', [], 'Flag of the run, such as --fisher_sequences=16.')
_MESHES = flags.DEFINE_multi_string(
    'mesh', ['1,2,1', '1,2,2', '2,2,2'], 'Sizes of data, fsdp and tensor.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for the results.')
_NOT_HERE = ('--circuit_resamples=0', '--circuit_random_circuits=1')


def _measure(
    config: run_config.RunConfig, circuit: graph.Circuit | None
) -> tuple[dict[str, Any], graph.Circuit]:
  """Arrays on the host by name, and the circuit that they are of."""
  inputs, model = inputs_lib.read(config), loading.load(config.model)
  pairs = attribution.forget_pairs(config, inputs.splits, model.tokenizer)
  found = {'scores': attribution.score(config, model, pairs)['means']}
  if circuit is None:
    circuit = attribution.find(config, inputs, model).circuit
  edit = edits.make(config, model, circuit)
  batches = training.make_batches(config, inputs, model)
  found['fisher'] = training.circuit_fisher(config, edit, batches)
  problem = training.make_problem(config, edit, found['fisher'])
  gradient = jax.jit(jax.grad(problem.loss, has_aux=True))
  for name, view in edit.views.items():
    seen = edit.theta if view.quantize is None else view.quantize(edit.theta)
    found[f'gradients at {name}'], _ = gradient(
        seen, view.frozen(), edit.base, batches(0))
  return sharding.to_host(found), circuit


def _differences(one: dict[str, Any], two: dict[str, Any]) -> dict[str, float]:
  """By name the largest, of the largest entry of its array."""
  largest = lambda a, b: float(np.abs(a - b).max() / np.abs(a).max())
  return {name: max(jax.tree.leaves(jax.tree.map(largest, one[name], two[name])))
          for name in one}


def main(argv: list[str]) -> None:
  """Measures and prints."""
  del argv
  logging.set_verbosity(logging.INFO)
  config = run_flags.from_flagfile(
      _JOB.value, *_NOT_HERE, *_OVERRIDES.value)
  first, circuit, found = None, None, []
  for mesh in ('1,1,1', *_MESHES.value):
    sizes = dict(zip(sharding.AXES, map(int, mesh.split(','))))
    devices = jax.devices()[:math.prod(sizes.values())]
    with jax.set_mesh(sharding.make_mesh(
        run_config.MeshConfig(**sizes), devices)):
      arrays, circuit = _measure(config, circuit)
    if first is None:
      first = arrays
      continue
    found.append({'mesh': sizes, 'devices': len(devices),
                  'differences': _differences(first, arrays)})
    print(json.dumps(found[-1], indent=1), flush=True)
  if _OUT.value:
    files.write_json(pathlib.Path(_OUT.value), {
        'job': _JOB.value, 'overrides': _OVERRIDES.value,
        'environment': environment.describe(), 'meshes': found})


if __name__ == '__main__':
  app.run(main)
