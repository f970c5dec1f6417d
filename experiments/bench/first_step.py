"""Scores, Fisher and first gradients of a run on several device meshes.

  JAX_NUM_CPU_DEVICES=8 JAX_PLATFORMS=cpu \\
      python -m experiments.bench.first_step [--job=FLAGFILE]
      [--override=FLAG ...] [--mesh=DATA,FSDP,TENSOR ...] [--out=F]

Compares quantities before the first threshold, which can turn a rounding error
into another quantization bin: attribution scores of all nodes, the Fisher of
the circuit's weights, and the gradients of the first step at each view, all on
the circuit that one device finds. Differences are relative to the largest entry
of the array. SmolLM2-135M takes 3 minutes per mesh on two cores.
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
from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as run_config
from mansu_jax.models.io import loading
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.runtime import sharding
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import quantizer_rules
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import training

_JOB = flags.DEFINE_string(
    'job', 'experiments/former.flags', 'Flagfile of the run.')
_OVERRIDES = flags.DEFINE_multi_string(
    'override', [],
    'Flag of the run, such as --fisher_sequences=16; repeatable.')
_MESHES = flags.DEFINE_multi_string(
    'mesh', ['1,2,1', '1,2,2', '2,2,2'],
    'Sizes of the axes data, fsdp and tensor; repeatable.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for the results.')
_SKIP = (  # Parts of a run that this benchmark does not need.
    '--circuit_resamples=0', '--circuit_random_circuits=1')


def _measure(
    config: run_config.RunConfig, circuit: graph.Circuit | None
) -> tuple[dict[str, Any], graph.Circuit]:
  """Computes the compared arrays on the current mesh.

  Args:
    config: Config of the run.
    circuit: Circuit; None: attribution finds it.

  Returns:
    Host arrays by name, and the circuit.
  """
  inputs, model = inputs_lib.read(config), loading.load(config.model)
  settings = settings_lib.Settings.from_run(config)
  scored = attribution.score(settings, inputs.splits, model)
  found = {'scores': scored.means}
  if circuit is None:
    circuit = attribution.find(settings, model, scored).circuit
  edit = edits.circuit_edit(
      model, circuit, quantizer_rules.with_fixed_grid(config.quant_schemes),
      quantized_views=config.unlearn.quantizer_in_loop,
      storage_dtype=config.export_dtype)
  batches = pools.make_batches(
      config.unlearn, config.data, inputs.splits, model, seed=config.seed)
  found['fisher'] = training.circuit_fisher(
      config.fisher, edit, training.fisher_spans(
          config.fisher, batches, seed=config.seed), seed=config.seed)
  problem = training.make_problem(
      config.unlearn, config.edit, edit, found['fisher'])
  gradient = jax.jit(jax.grad(problem.loss, has_aux=True))
  for name, view in edit.views.items():
    theta = edit.theta if view.quantize is None else view.quantize(edit.theta)
    found[f'gradients at {name}'], _ = gradient(
        theta, view.frozen(), edit.base, batches(0))
  return sharding.to_host(found), circuit


def _differences(
    first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
  """Largest difference by name, relative to the array's largest entry."""
  relative = lambda a, b: float(np.abs(a - b).max() / np.abs(a).max())
  return {name: max(jax.tree.leaves(
      jax.tree.map(relative, first[name], second[name]))) for name in first}


def main(argv: list[str]) -> None:
  """Compares all meshes with one device; prints and writes differences."""
  del argv
  logging.set_verbosity(logging.INFO)
  config = flags_lib.from_flagfile(
      _JOB.value, *_SKIP, *_OVERRIDES.value)
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
