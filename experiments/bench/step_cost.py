"""Cost of an unlearning step relative to one plain forward and backward pass.

  python -m experiments.bench.step_cost [--job=FLAGFILE] [--override=FLAG ...]
      [--rounds=10] [--out=F]

Uses SmolLM2-135M, the quickstart's batches and a circuit of its size. The step
is at the full-precision view: forward pass, gradients of the circuit's slices,
the chain, the floor, and the base's logits for the KL. The plain pass runs the
same packed rows forward and backward to their embeddings, without weight
gradients, with logits at the same positions. Both run in one process and in
turn; the fastest round counts. Operations are those of matrix products
(`planning.cost`). Temporary memory is what XLA reserves beside arguments and
results.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import os
import pathlib
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as run_config
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.planning import cost
from mansu_jax.runtime import sharding
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import quantizer_rules
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import training
from mansu_jax.unlearn import loop
from mansu_jax.unlearn import losses

_JOB = flags.DEFINE_string(
    'job', 'experiments/former.flags', 'Flagfile of the run.')
_OVERRIDES = flags.DEFINE_multi_string(
    'override', [], 'Flag of the run, such as --circuit_first_layer=0;'
    ' repeatable.')
_ROUNDS = flags.DEFINE_integer(
    'rounds', 10, 'Timed rounds; the fastest counts.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for the results.')


def _plain(config: model_config.ModelConfig) -> Any:
  """Compiled loss and gradient at the embeddings, on the step's batch."""

  def loss(embeddings, params, batch):
    hidden = decoder.forward(
        config, params, embeddings=embeddings,
        positions=batch.packed.positions, segments=batch.packed.segments)
    flat = hidden.reshape(-1, hidden.shape[-1])
    total = 0.0
    for part in (batch.forget, batch.retain, batch.text, batch.swapped):
      if part is not None:
        nll = losses.token_nll(
            decoder.unembed(config, params, flat[part.where]), part.labels)
        total += jnp.sum(nll * part.weight)
    return total

  return jax.jit(lambda params, batch: jax.value_and_grad(loss)(
      decoder.embed(config, params, batch.packed.tokens), params, batch))


def _step(config: run_config.RunConfig, model: Any) -> tuple[Any, Any]:
  """The compiled step, and its arguments except the batch."""
  edit = edits.circuit_edit(
      model, abstract.draw_circuit(
          config.attribution.level, config.circuit, config.seed, model.config),
      quantizer_rules.with_fixed_grid(config.quant_schemes),
      quantized_views=config.unlearn.quantizer_in_loop,
      storage_dtype=config.export_dtype)
  fisher = jax.tree.map(jnp.ones_like, edit.theta)
  problem = training.make_problem(
      config.unlearn, config.edit, edit, fisher)
  carry = jax.tree.map(jnp.array, (edit.theta, problem.tx.init(edit.theta)))
  step = loop.make_step(problem, jax.tree.map(lambda x: x.sharding, carry))
  theta = jax.tree.map(jnp.array, edit.theta)
  return step, (carry, theta, edit.base, edit.base, edit.theta)


def _time(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
  """Seconds of the fastest round by name; the functions take turns."""
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(_ROUNDS.value + 1):  # Round 0 compiles.
    for name, run in runs.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  return {name: min(times[1:]) for name, times in seconds.items()}


def measure(config: run_config.RunConfig) -> dict[str, Any]:
  """Times step and plain pass, and counts their operations.

  Args:
    config: Config of the run.

  Returns:
    JSON-able results.
  """
  model = loading.load(config.model)
  batches = pools.make_batches(
      config.unlearn, config.data, inputs_lib.read(config).splits, model,
      seed=config.seed)
  batch = jax.device_put(batches(0))
  plain, (step, (carry, *rest)) = _plain(model.config), _step(config, model)
  compiled = {
      'plain': plain.trace(model.params, batch),
      'step': step.trace(carry, *rest, batch)}
  out = {name: {
      'gflop': cost.count(traced.jaxpr).flops / 1e9,
      'temporary_bytes': (
          traced.lower().compile().memory_analysis().temp_size_in_bytes)}
         for name, traced in compiled.items()}
  def run_step():
    nonlocal carry
    carry, *_ = jax.block_until_ready(step(carry, *rest, batch))

  run_plain = lambda: jax.block_until_ready(plain(model.params, batch))
  for name, seconds in _time({'plain': run_plain, 'step': run_step}).items():
    out[name]['seconds'] = seconds
  out['tokens'] = int((batch.packed.segments >= 0).sum())
  out['rows'] = list(batch.packed.tokens.shape)
  out['ratio'] = {key: out['step'][key] / out['plain'][key]
                  for key in out['plain']}
  return out


def main(argv: list[str]) -> None:
  """Measures, prints and writes the results."""
  del argv
  config = flags_lib.from_flagfile(_JOB.value, *_OVERRIDES.value)
  with jax.set_mesh(sharding.make_mesh(config.mesh)):
    found = measure(config)
  found |= {'job': _JOB.value, 'overrides': _OVERRIDES.value,
            'cores': len(os.sched_getaffinity(0)),
            'device': jax.devices()[0].device_kind, 'jax': jax.__version__}
  print(json.dumps(found, indent=1))
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(
        json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
