"""How much memory a device has, and how many of something fit a share of it.

Sizes of batches that change no result but for rounding are most sizes: fewer
are taken where a device is small. What a device has in all decides, not what is
free, so that a run is cut alike whenever it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import contextvars
import math
import os

import jax

SHARE = 0.1  # Of a device's memory, for what is cut into batches.
# Bytes and platform of the devices of a plan.
_planned: contextvars.ContextVar[tuple[float, str] | None] = (
    contextvars.ContextVar('planned', default=None))
_agreed: list[float] = []  # Of several processes; once for all.


def device_bytes() -> float:
  """Bytes of a device; of a CPU its share of the machine's."""
  if (plan := _planned.get()) is not None:
    return plan[0]
  return _agreed[0] if _agreed else _own_bytes()


def agree(broadcast: Callable[[Callable[[], float]], float]) -> None:
  """Makes all processes use the device memory of the primary process.

  Collective: every process must call it, before it traces programs whose size
  depends on the memory.

  Args:
    broadcast: `processes.broadcast_from_primary`; an argument, so that this
      module needs no other of the package.
  """
  if jax.process_count() > 1 and not _agreed:
    _agreed.append(broadcast(_own_bytes))


def _own_bytes() -> float:
  devices = jax.local_devices()
  stats = devices[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return float(stats['bytes_limit'])
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return total / len(devices)


def platform() -> str:
  """Of the devices that programs are for: `cpu`, `gpu`, `tpu`."""
  plan = _planned.get()
  return jax.default_backend() if plan is None else plan[1]


@contextlib.contextmanager
def planned(size: float, of: str = 'cpu') -> Iterator[None]:
  """Within it devices are those of a plan.

  What was traced before does not know: see `jax.clear_caches`.

  Args:
    size: bytes of a device.
    of: its platform.
  """
  token = _planned.set((size, of))
  try:
    yield
  finally:
    _planned.reset(token)


def bytes_of(x: jax.Array | jax.ShapeDtypeStruct) -> int:
  """Bytes of an array, or a shape, on one device."""
  shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
  return math.prod(shape) * x.dtype.itemsize


def fitting(most: int, each: float) -> int:
  """How many of `each` bytes fit `SHARE`: at least 1, at most `most`."""
  return int(max(1, min(most, SHARE * device_bytes() // max(each, 1))))
