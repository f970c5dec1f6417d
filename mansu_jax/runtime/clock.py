"""Times the stages of a run and, on request, traces them.

Run each stage within `Clock.stage(name)`. `Clock.stages` is then the list for
the record, with seconds, compile time, peak memory and token rate.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import functools
import pathlib
import resource
import threading
import time
from typing import Any

from absl import logging
import jax

from mansu_jax.runtime import memory
from mansu_jax.runtime import preemption
from mansu_jax.runtime import progress

_GIB = 2**30
_TRACE_S = 20.0  # Seconds of a stage to trace; viewers reject larger traces.
_COMPILE_EVENTS = (  # JAX's names of durations.
    '/jax/core/compile/jaxpr_to_mlir_module_duration',
    '/jax/core/compile/backend_compile_duration')


def peak_bytes() -> int:
  """Peak memory so far, in bytes.

  That of the fullest device if all devices report it, else, as on CPU, that of
  the process.
  """
  peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use')
           for device in jax.local_devices()]
  if all(peak is not None for peak in peaks):
    return int(max(peaks))
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def _compile_seconds() -> list[float]:
  """A running total [1], updated by one listener for the whole process."""
  total = [0.0]

  def add(event: str, seconds: float, **_) -> None:
    if event in _COMPILE_EVENTS:
      total[0] += seconds

  jax.monitoring.register_event_duration_secs_listener(add)
  return total


class Clock:
  """Times stages.

  Attributes:
    stages: One entry for each finished stage. `compile_seconds` is the part of
      `seconds` in which JAX lowered and compiled programs, without tracing.
      `tokens` counts the tokens that models processed; `tokens_per_second`
      excludes the compile time and is None without tokens.
  """

  def __init__(self):
    self.stages: list[dict[str, Any]] = []
    self._profile: pathlib.Path | None = None

  def trace_to(self, folder: pathlib.Path) -> None:
    """Traces the first 20 seconds of each later stage into a folder."""
    self._profile = folder

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Times and logs a block.

    Raises:
      preemption.Stopped: A signal asked the run to stop before the stage.
    """
    preemption.check()
    logging.info('%s ...', name)
    total = _compile_seconds()
    start, before, tokens = time.monotonic(), total[0], progress.tokens()
    with self._trace(name):
      yield
    memory.release_unused()
    seconds, compiling = time.monotonic() - start, total[0] - before
    tokens = progress.tokens() - tokens
    rate = tokens / max(seconds - compiling, 1e-9) if tokens else None
    self.stages.append({
        'name': name, 'seconds': seconds, 'compile_seconds': compiling,
        'peak_bytes': peak_bytes(), 'tokens': tokens,
        'tokens_per_second': rate})
    logging.info(
        '%s: %.1f s, of which %.1f s compiling%s; peak memory so far %.2f GiB',
        name, seconds, compiling,
        f'; {tokens} tokens, {rate:.0f} per second' if tokens else '',
        self.stages[-1]['peak_bytes'] / _GIB)

  @contextlib.contextmanager
  def _trace(self, name: str) -> Iterator[None]:
    """Traces the first seconds of a block if `trace_to` was called."""
    if self._profile is None:
      yield
      return
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python events would add a gigabyte.
    jax.profiler.start_trace(
        self._profile / name.replace(' ', '_'), profiler_options=options)
    lock, ended = threading.Lock(), []

    def end() -> None:
      with lock:
        if ended:
          return
        ended.append(True)
        try:
          jax.profiler.stop_trace()
        except Exception as error:  # pylint: disable=broad-exception-caught
          logging.error('The trace of %s is not written: %s', name, error)

    timer = threading.Timer(_TRACE_S, end)
    timer.daemon = True
    timer.start()
    try:
      yield
    finally:
      timer.cancel()
      end()
