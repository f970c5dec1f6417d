"""Chooses batch sizes by the memory of a device.

`fitting` gives the largest batch that fits a fixed share of the memory. It uses
the total memory of a device rather than its free memory, so that a repeated run
has the same batches; the batch size changes results by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import contextvars
import ctypes
import gc
import math
import os
import sys

import jax

SHARE = 0.1  # Share of a device's memory that a batch may use.
# Bytes and platform of the devices of a plan.
_planned: contextvars.ContextVar[tuple[float, str] | None] = (
    contextvars.ContextVar('planned', default=None))
_shared: list[float] = []  # Bytes of a device of the primary process, or empty.


def device_bytes() -> float:
  """Memory of a device in bytes.

  On CPU, the memory of the machine divided by the number of devices.
  """
  if (plan := _planned.get()) is not None:
    return plan[0]
  return _shared[0] if _shared else _local_device_bytes()


def synchronize(broadcast: Callable[[Callable[[], float]], float]) -> None:
  """Makes all processes use the device memory of the primary one. Collective.

  Call it before tracing any program whose batch size depends on the memory.

  Args:
    broadcast: `processes.broadcast_from_primary`; an argument, so that this
      module imports no other of the package.
  """
  if jax.process_count() > 1 and not _shared:
    _shared.append(broadcast(_local_device_bytes))


def _local_device_bytes() -> float:
  devices = jax.local_devices()
  stats = devices[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return float(stats['bytes_limit'])
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return total / len(devices)


def platform() -> str:
  """Platform that programs are compiled for: `cpu`, `gpu` or `tpu`."""
  plan = _planned.get()
  return jax.default_backend() if plan is None else plan[1]


@contextlib.contextmanager
def planned(size: float, backend: str = 'cpu') -> Iterator[None]:
  """Makes this module report the devices of a plan within the block.

  Functions that JAX has traced before do not notice; see `jax.clear_caches`.

  Args:
    size: Bytes of a device.
    backend: Platform of the devices.
  """
  token = _planned.set((size, backend))
  try:
    yield
  finally:
    _planned.reset(token)


def release_unused() -> None:
  """Returns freed memory to the system, where the C library keeps it (Linux).

  A stage that frees large arrays otherwise leaves its peak to the next stages,
  whose own arrays come on top.
  """
  gc.collect()
  if sys.platform.startswith('linux'):
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # Not in musl.
    if trim is not None:
      trim(0)


def bytes_of(x: jax.Array | jax.ShapeDtypeStruct) -> int:
  """Bytes that an array, or an abstract array, needs on one device."""
  shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
  return math.prod(shape) * x.dtype.itemsize


def fitting(most: int, each: float) -> int:
  """Largest number of items that fits the memory for a batch.

  Args:
    most: Upper bound of the result, which is at least 1.
    each: Bytes of an item on one device.
  """
  return int(max(1, min(most, SHARE * device_bytes() // max(each, 1))))
