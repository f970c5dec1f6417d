"""What a step of unlearning takes, beside what no training can do without.

  python -m experiments.bench.step_cost [--job=FLAGFILE] [--override=FLAG ...]
      [--rounds=10] [--out=F]

On SmolLM2-135M, the quickstart's batches and a circuit of its size: the step at
the full-precision view (forward, gradients of the circuit's slices, the chain,
the floor, the base's own logits for the KL), and a plain forward and backward
of the same packed rows to their embeddings, without any weight's gradient and
with logits at the same places. In one process and in turn; the fastest round
counts. Operations are those of matrix products (`planning.cost`); temporary
memory is what XLA reserves beside arguments and results.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

from mansu_jax.config import flags as run_flags
from mansu_jax.config import run as run_config
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.planning import cost
from mansu_jax.runtime import sharding
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import training
from mansu_jax.unlearn import loop
from mansu_jax.unlearn import losses

_JOB = flags.DEFINE_string(
    'job', 'experiments/quickstart.flags', 'Flagfile of the run.')
_OVERRIDES = flags.DEFINE_multi_string(
    'override', [], 'Flag of the run, such as --circuit_first_layer=0.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds; the fastest counts.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for the results.')


def _plain(shapes: Any) -> Any:
  """Loss and gradient to the embeddings, of the step's rows and places."""

  def loss(embeddings, params, batch):
    hidden = decoder.forward(
        shapes, params, embeddings=embeddings,
        positions=batch.packed.positions, segments=batch.packed.segments)
    flat = hidden.reshape(-1, hidden.shape[-1])
    total = 0.0
    for part in (batch.forget, batch.retain, batch.text, batch.swapped):
      if part is not None:
        nll = losses.token_nll(
            decoder.unembed(params, flat[part.where]), part.labels)
        total += jnp.sum(nll * part.weight)
    return total

  return jax.jit(lambda params, batch: jax.value_and_grad(loss)(
      decoder.embed(params, batch.packed.tokens), params, batch))


def _step(config: run_config.RunConfig, model: Any) -> tuple[Any, Any]:
  """The jitted step, and its arguments but the batch."""
  edit = edits.make(
      model, abstract.draw_circuit(config, model.config),
      quantizers.with_fixed_grid(config.quant_schemes),
      quantized_views=config.unlearn.quantizer_in_loop,
      storage_dtype=config.export_dtype)
  fisher = jax.tree.map(jnp.ones_like, edit.theta)
  problem = training.make_problem(
      config.unlearn, config.edit, edit, fisher)
  carry = jax.tree.map(jnp.array, (edit.theta, problem.tx.init(edit.theta)))
  step = loop.make_step(problem, jax.tree.map(lambda x: x.sharding, carry))
  seen = jax.tree.map(jnp.array, edit.theta)
  return step, (carry, seen, edit.base, edit.base, edit.theta)


def measure(config: run_config.RunConfig) -> dict[str, Any]:
  """Times both and counts what they compute."""
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
  seconds = {'plain': [], 'step': []}
  for _ in range(_ROUNDS.value + 1):  # The first compiles.
    start = time.perf_counter()
    jax.block_until_ready(plain(model.params, batch))
    seconds['plain'].append(time.perf_counter() - start)
    start = time.perf_counter()
    carry, *_ = jax.block_until_ready(step(carry, *rest, batch))
    seconds['step'].append(time.perf_counter() - start)
  for name, found in seconds.items():
    out[name]['seconds'] = min(found[1:])
  out['tokens'] = int((batch.packed.segments >= 0).sum())
  out['rows'] = list(batch.packed.tokens.shape)
  out['ratio'] = {key: out['step'][key] / out['plain'][key]
                  for key in out['plain']}
  return out


def main(argv: list[str]) -> None:
  """Measures and prints."""
  del argv
  config = run_flags.from_flagfile(_JOB.value, *_OVERRIDES.value)
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
