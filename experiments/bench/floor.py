"""Measures the cost of the floor: time of a step of Adam, and bytes of state.

  python -m experiments.bench.floor [--weights=1048576] [--rounds=30] [--out=F]

Compiles `transforms.step` with donated weights and state for one square matrix
whose gradient is a product. Variants alternate in one process, and the fastest
round counts, since other work on the machine can only slow a round down.
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
import optax

from mansu_jax import quant
from mansu_jax import transforms

_WEIGHTS = flags.DEFINE_integer('weights', 1 << 20, 'Size of the matrix.')
_ROUNDS = flags.DEFINE_integer('rounds', 30, 'Number of rounds.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for the results.')


def _variants(params: Any) -> dict[str, optax.GradientTransformation]:
  layout = quant.BlockLayout(memory='IO', out='O', inp='I')
  grid = lambda name: quant.code_grid(params, name, layout)
  adam = lambda: optax.adam(1e-4)
  floored = lambda names, **options: optax.chain(
      adam(), transforms.magnitude_floor(
          [grid(name) for name in names.split('+')], **options))
  names = ('nf4', 'fp4', 'int4_g128', 'int8', 'q4_0', 'nf4_dq', 'nf4+int8')
  return {
      'adam': adam(),
      **{f'adam, floor of {name}': floored(name) for name in names},
      'adam, floor of nf4, theta_0 not kept': floored('nf4', keep_origin=False),
      'adam, circuit mask, null space, floor of nf4, theta_0 not kept':
          transforms.mansu(
              adam(), fisher=jnp.square(params), circuit_mask=params > 0,
              grids=grid('nf4'), keep_origin=False)}


def _program(tx: optax.GradientTransformation, params: Any) -> Any:
  """A function `(carry) -> carry` of one step, and the first carry."""
  def step(carry, slope, origin):
    theta, state = carry
    return transforms.step(tx, slope * theta, state, theta, origin=origin)

  return jax.jit(step, donate_argnums=0), (jnp.array(params), tx.init(params))


def main(argv: list[str]) -> None:
  """Measures all variants and prints a table."""
  del argv
  side = round(_WEIGHTS.value ** 0.5)
  params, slope = (0.02 * jax.random.normal(jax.random.key(i), (side, side))
                   for i in range(2))
  programs = {name: _program(tx, params)
              for name, tx in _variants(params).items()}
  rows = {name: {'bytes_of_state_a_weight': round(
      sum(x.nbytes for x in jax.tree.leaves(carry[1])) / params.size, 3)}
          for name, (_, carry) in programs.items()}
  carries = {name: carry for name, (_, carry) in programs.items()}
  seconds: dict[str, list[float]] = {name: [] for name in programs}
  for _ in range(_ROUNDS.value + 1):  # The first compiles.
    for name, (step, _) in programs.items():
      start = time.perf_counter()
      carries[name] = jax.block_until_ready(
          step(carries[name], slope, params))
      seconds[name].append(time.perf_counter() - start)
  for name, times in seconds.items():
    rows[name]['ms'] = round(1e3 * min(times[1:]), 3)
    rows[name]['times_adam'] = round(
        min(times[1:]) / min(seconds['adam'][1:]), 2)
    print(f'{rows[name]["ms"]:8.2f} ms  {rows[name]["times_adam"]:5.2f} x adam'
          f'  {rows[name]["bytes_of_state_a_weight"]:6.2f} bytes  {name}')
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps({
        'weights': params.size, 'rounds': _ROUNDS.value,
        'device': jax.devices()[0].device_kind, 'cores': os.cpu_count(),
        'jax': jax.__version__, 'variants': rows}, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
