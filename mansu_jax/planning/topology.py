"""Devices that need not be there: a TPU slice by its name, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import os
import re
import time
from typing import NamedTuple

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from mansu_jax.runtime import memory

THIS = 'this'
_GIB = 2**30


class Chip(NamedTuple):
  """What one device can do."""

  name: str
  memory: float  # bytes that a program may use
  flops: float  # a second, in bfloat16 (of this machine, as it computes)
  bandwidth: float  # bytes a second from its memory
  links: float  # bytes a second to the other devices
  passes: float = 6.0  # times what a product takes, in float32 proper


# Google's published figures of a chip; of its memory what the compiler grants.
# device_kind -> Chip
_TPUS = {
    'TPU v5 lite': Chip('v5e', 15.75 * _GIB, 197e12, 819e9, 200e9),
    'TPU v5': Chip('v5p', 95 * _GIB, 459e12, 2765e9, 600e9),
    'TPU v6 lite': Chip('v6e', 31.25 * _GIB, 918e12, 1640e9, 448e9),
}
_ON_ONE_HOST = 8  # Chips of a slice of v5e or v6e.
_NAME = re.compile(r'(v5e|v5p|v6e):[1-9]\d*x[1-9]\d*(x[1-9]\d*)?')
# What a TPU's runtime would ask the cloud's metadata server for.
_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_ID': '0', 'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}  # None is used: plans may run at once.


def check(name: str) -> None:
  """Raises ValueError on what is no topology's name."""
  if name != THIS and not _NAME.fullmatch(name):
    raise ValueError(
        f'--plan_topology={name} is not known; wanted `this`, or a slice of'
        ' v5e, v5p or v6e with its shape, such as v5e:2x4 or v5p:2x2x4.')


def prepare(name: str) -> None:
  """To be called before anything makes JAX look for devices.

  Where the devices that are asked for are not these, the host's CPU is enough
  for the little that is computed, and JAX need not look for a TPU.

  Raises:
    ValueError: as `check`.
  """
  check(name)
  if name != THIS:
    for key, value in _ENVIRONMENT.items():
      os.environ.setdefault(key, value)
    jax.config.update('jax_platforms', 'cpu')
    # What is compiled for devices that are not there cannot be read back.
    jax.config.update('jax_enable_compilation_cache', False)


def find(name: str) -> tuple[Sequence[jax.Device], Chip]:
  """The devices of a topology, which compile but do not run, and their kind.

  Args:
    name: as `check` wants it; `this` gives the devices that are there.

  Raises:
    ValueError: there is no TPU compiler, or no such slice.
  """
  prepare(name)
  if name == THIS:
    return jax.devices(), _measured(jax.local_devices()[0])
  try:
    import libtpu  # pylint: disable=g-import-not-at-top,unused-import
  except ImportError as error:
    raise ValueError(
        f'--plan_topology={name} needs the TPU\'s compiler, which is not'
        ' installed; wanted the package libtpu. Run `pip install -e'
        " '.[plan]'`, best in an environment of its own: it slows the start of"
        ' all others.') from error
  try:
    devices = topologies.get_topology_desc(
        platform='tpu', topology_name=name).devices
  except jax.errors.JaxRuntimeError as error:
    if 'INVALID_ARGUMENT' not in str(error):
      raise
    raise ValueError(
        f'--plan_topology={name}: the TPU\'s compiler knows no such slice'
        f' ({str(error).splitlines()[0]}). Give one that can be had, such as'
        ' v5e:2x4 or v5p:2x2x4.') from error
  return devices, _TPUS[devices[0].device_kind]


def hosts(name: str, devices: Sequence[jax.Device]) -> int:
  """On how many hosts the devices of a topology are.

  The compiler takes four chips a host; Google has v5e and v6e slices of up to
  eight on one.
  """
  if name.startswith(('v5e:', 'v6e:')) and len(devices) <= _ON_ONE_HOST:
    return 1
  return len({device.process_index for device in devices})


def _measured(device: jax.Device) -> Chip:
  """Of a device that is there: memory as it tells, speeds as they come out."""
  side = 2048
  x = jax.device_put(jnp.ones((side, side), jnp.float32), device)
  multiply, move = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
  exact = jax.jit(functools.partial(jnp.matmul, precision='highest'))
  seconds = alone = _seconds(multiply, x)
  exact_seconds = _seconds(lambda a: exact(a, a), x)
  y = jax.device_put(jnp.ones(2**26, jnp.float32), device)
  bandwidth = 2 * y.nbytes / _seconds(move, y)
  if device.platform == 'cpu':  # They share one machine.
    seconds *= len(jax.local_devices())
    bandwidth /= len(jax.local_devices())
  return Chip(
      device.device_kind, memory.device_bytes(), 2 * side**3 / seconds,
      bandwidth, bandwidth,
      max(1.0, exact_seconds / alone))


def _seconds(run, x, times: int = 3) -> float:
  """The best of a few calls."""
  jax.block_until_ready(run(x))
  best = float('inf')
  for _ in range(times):
    start = time.perf_counter()
    jax.block_until_ready(run(x))
    best = min(best, time.perf_counter() - start)
  return best
