"""TPU slices by name, without the devices, and the chips' figures."""

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
  """The figures of one device."""

  name: str
  memory: float  # bytes that a program may use
  flops: float  # per second, in bfloat16 (on this machine: in its default)
  bandwidth: float  # bytes per second from its memory
  links: float  # bytes per second to the other devices
  passes: float = 6.0  # cost of a full float32 product, in default products


# `{device_kind: Chip}`: Google's published figures, with the memory that the
# compiler allows.
_TPUS = {
    'TPU v5 lite': Chip('v5e', 15.75 * _GIB, 197e12, 819e9, 200e9),
    'TPU v5': Chip('v5p', 95 * _GIB, 459e12, 2765e9, 600e9),
    'TPU v6 lite': Chip('v6e', 31.25 * _GIB, 918e12, 1640e9, 448e9),
}
_ON_ONE_HOST = 8  # Chips of v5e or v6e that one host may have.
_NAME = re.compile(r'(v5e|v5p|v6e):[1-9]\d*x[1-9]\d*(x[1-9]\d*)?')
# Replaces queries to the cloud's metadata server.
_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_ID': '0', 'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}  # No TPU is used; plans may overlap.


def check(name: str) -> None:
  """Raises ValueError on an unknown topology."""
  if name != THIS and not _NAME.fullmatch(name):
    raise ValueError(
        f'--plan_topology={name} is not known; wanted `this`, or a slice of'
        ' v5e, v5p or v6e with its shape, such as v5e:2x4 or v5p:2x2x4.')


def prepare(name: str) -> None:
  """Sets up JAX for a topology; call before JAX initialises its devices.

  A plan for absent devices computes little, so JAX uses the host's CPU and does
  not look for a TPU.

  Raises:
    ValueError: an unknown topology.
  """
  check(name)
  if name != THIS:
    for key, value in _ENVIRONMENT.items():
      os.environ.setdefault(key, value)
    jax.config.update('jax_platforms', 'cpu')
    # The cache cannot read programs back for absent devices.
    jax.config.update('jax_enable_compilation_cache', False)


def find(name: str) -> tuple[Sequence[jax.Device], Chip]:
  """The devices of a topology, to compile for, and their figures.

  Args:
    name: a slice's name, or `this` for the attached devices.

  Raises:
    ValueError: libtpu is not installed, or the slice does not exist.
  """
  prepare(name)
  if name == THIS:
    return jax.devices(), _measured(jax.local_devices()[0])
  try:
    import libtpu  # pylint: disable=g-import-not-at-top,unused-import
  except ImportError as error:
    raise ValueError(
        f'--plan_topology={name} needs the TPU compiler, but the package libtpu'
        " is not installed. Run `pip install -e '.[plan]'`, best in a separate"
        ' environment: libtpu slows every start of JAX.') from error
  try:
    devices = topologies.get_topology_desc(
        platform='tpu', topology_name=name).devices
  except jax.errors.JaxRuntimeError as error:
    if 'INVALID_ARGUMENT' not in str(error):
      raise
    raise ValueError(
        f'--plan_topology={name}: the TPU compiler does not support this slice'
        f' ({str(error).splitlines()[0]}). Wanted an existing one, such as'
        ' v5e:2x4 or v5p:2x2x4.') from error
  return devices, _TPUS[devices[0].device_kind]


def hosts(name: str, devices: Sequence[jax.Device]) -> int:
  """Number of hosts of a topology.

  The compiler assumes four chips a host, but v5e and v6e have slices of up to
  eight chips on one host.
  """
  if name.startswith(('v5e:', 'v6e:')) and len(devices) <= _ON_ONE_HOST:
    return 1
  return len({device.process_index for device in devices})


def _measured(device: jax.Device) -> Chip:
  """Reported memory and measured speeds of an attached device."""
  side = 2048
  x = jax.device_put(jnp.ones((side, side), jnp.float32), device)
  multiply, move = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
  exact = jax.jit(functools.partial(jnp.matmul, precision='highest'))
  seconds = alone = _seconds(multiply, x)
  exact_seconds = _seconds(lambda a: exact(a, a), x)
  y = jax.device_put(jnp.ones(2**26, jnp.float32), device)
  bandwidth = 2 * y.nbytes / _seconds(move, y)
  if device.platform == 'cpu':  # CPU devices share the machine.
    seconds *= len(jax.local_devices())
    bandwidth /= len(jax.local_devices())
  return Chip(
      device.device_kind, memory.device_bytes(), 2 * side**3 / seconds,
      bandwidth, bandwidth,
      max(1.0, exact_seconds / alone))


def _seconds(run, x, times: int = 3) -> float:
  """The fastest of a few calls."""
  jax.block_until_ready(run(x))
  best = float('inf')
  for _ in range(times):
    start = time.perf_counter()
    jax.block_until_ready(run(x))
    best = min(best, time.perf_counter() - start)
  return best
