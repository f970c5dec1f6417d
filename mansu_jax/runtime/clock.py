"""Stages timed: seconds, compiling, tokens, memory; and traced, if asked."""

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

from mansu_jax.runtime import preemption
from mansu_jax.runtime import progress

_GIB = 2**30
_TRACED_S = 20.0  # Of each stage: a trace of more is too large to be looked at.
# JAX's names of the two durations.
_COMPILING = ('/jax/core/compile/jaxpr_to_mlir_module_duration',
              '/jax/core/compile/backend_compile_duration')


def peak_bytes() -> int:
  """Peak memory so far: of the fullest device where they tell it.

  Else, as on CPU, of the process.
  """
  peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use')
           for device in jax.local_devices()]
  if all(peak is not None for peak in peaks):
    return int(max(peaks))
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def _compile_seconds() -> list[float]:
  """A running total, in one listener for the whole process."""
  total = [0.0]

  def hear(event: str, seconds: float, **_) -> None:
    if event in _COMPILING:
      total[0] += seconds

  jax.monitoring.register_event_duration_secs_listener(hear)
  return total


class Clock:
  """Times stages; `stages` is the record's list.

  `compile_seconds` is what JAX spends on lowering and compiling programs, of
  `seconds`; tracing is not in it. `tokens` is what models were run on, and
  `tokens_per_second` of the seconds without compiling; None of no tokens.
  """

  def __init__(self):
    self.stages: list[dict[str, Any]] = []
    self._profile: pathlib.Path | None = None

  def trace_to(self, folder: pathlib.Path) -> None:
    """From now on traces the first 20 seconds of each stage into `folder`."""
    self._profile = folder

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Times a block and logs it; raises Stopped where the run shall stop."""
    preemption.check()
    logging.info('%s ...', name)
    total = _compile_seconds()
    start, before, tokens = time.monotonic(), total[0], progress.tokens()
    with self._traced(name):
      yield
    seconds, compiling = time.monotonic() - start, total[0] - before
    tokens = progress.tokens() - tokens
    rate = tokens / max(seconds - compiling, 1e-9) if tokens else None
    self.stages.append({
        'name': name, 'seconds': seconds, 'compile_seconds': compiling,
        'peak_bytes': peak_bytes(), 'tokens': tokens,
        'tokens_per_second': rate})
    logging.info(
        '%s: %.1f s, of which %.1f compiling%s; peak so far %.2f GiB', name,
        seconds, compiling,
        f'; {tokens} tokens, {rate:.0f} a second' if tokens else '',
        self.stages[-1]['peak_bytes'] / _GIB)

  @contextlib.contextmanager
  def _traced(self, name: str) -> Iterator[None]:
    """Traces the first seconds of a block, if there is a folder for it."""
    if self._profile is None:
      yield
      return
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # A gigabyte, and no more told of devices.
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

    timer = threading.Timer(_TRACED_S, end)
    timer.daemon = True
    timer.start()
    try:
      yield
    finally:
      timer.cancel()
      end()
