"""Runs a module on this machine, in one process or several joined by JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
import socket
import subprocess
import sys
import time

_MOST_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Job:
  """Running processes; each writes its output and errors to a pipe."""

  processes: Sequence[subprocess.Popen]

  def wait_for(self, text: str) -> str:
    """Output of the first process up to a line with the text, or its end."""
    said = []
    for line in self.processes[0].stdout:
      said.append(line)
      if text in line:
        break
    return ''.join(said)

  def end(self) -> list[tuple[int, str]]:
    """Waits; returns `(exit status, further output)` of each process."""
    deadline = time.monotonic() + _MOST_SECONDS
    try:
      said = [p.communicate(timeout=deadline - time.monotonic())[0]
              for p in self.processes]
    finally:
      for process in self.processes:
        process.kill()
    return [(p.returncode, s) for p, s in zip(self.processes, said)]


def alone(module: str, *args: object) -> str:
  """What a module prints, run in one process."""
  done = subprocess.run(
      [sys.executable, '-m', module, *map(str, args)], capture_output=True,
      text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def start(
    module: str, *args: str, processes: int = 2, devices: int = 1,
    environment: Mapping[str, str] | None = None) -> Job:
  """Starts the processes with the same arguments."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  common = {
      **os.environ, **(environment or {}), 'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(devices),
      'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(processes)}
  return Job([subprocess.Popen(
      [sys.executable, '-m', module, *map(str, args)], text=True,
      env={**common, 'JAX_PROCESS_ID': str(i)}, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT) for i in range(processes)])
