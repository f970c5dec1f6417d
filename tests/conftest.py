"""Keeps compiled programs between tests and commands: most of their time.

They lie in pytest's cache folder, which `pytest --cache-clear` empties, by the
kind of processor: a program of one may not run on another.
"""

import gc
import hashlib
import importlib.util
import itertools
import os
import pathlib
import platform
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent
_MEDIUM = ('deployment', 'flows', 'mesh', 'planning', 'stages', 'tables', 'tpu',
           'test_docstrings.py', 'test_experiments.py', 'test_readme.py')
_LEAST_SECONDS = '0'  # Reading the smallest program beats compiling it.
# Without it, tiny programs take the CPU's compiler four times as long.
_XLA_FLAG = '--xla_cpu_use_fusion_emitters=false'
# Compiled programs lie in mapped memory; Linux grants a process 65,530 maps.
_MOST_MAPS = 30_000
_COLLECTED_EVERY = 2  # Files. Garbage is kept meanwhile.
_files = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
  """Before jax is imported; programs that tests start see it too."""
  folder = config.cache.mkdir('compiled') / _processor()
  for name, value in (
      ('JAX_COMPILATION_CACHE_DIR', str(folder)),
      ('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', _LEAST_SECONDS),
      ('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1'),
      ('JAX_NUMPY_RANK_PROMOTION', 'raise')):
    os.environ.setdefault(name, value)
  if config.option.markexpr:  # With -m '', the embedded model runs as well.
    # Tiny programs take longer to compile well than to run.
    os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')
    # Workers inherit the controller's.
    if 'XLA_FLAGS' not in os.environ and _known(_XLA_FLAG):
      os.environ['XLA_FLAGS'] = _XLA_FLAG


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Marks the rooms that run whole stages and flows."""
  for item in items:
    if item.path.relative_to(_ROOT).parts[0] in _MEDIUM:
      item.add_marker('medium')


def pytest_collection_finish() -> None:
  gc.freeze()  # Each stage of a run collects garbage; modules are none.


def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None) -> None:
  """Between files, drops the programs of a worker that holds very many."""
  if nextitem is None or item.path == nextitem.path:
    return
  maps = pathlib.Path('/proc/self/maps')
  full = maps.exists() and maps.read_bytes().count(b'\n') > _MOST_MAPS
  if full:
    import jax  # pylint: disable=g-import-not-at-top  # After pytest_configure.
    jax.clear_caches()
  if full or next(_files) % _COLLECTED_EVERY == 0:
    gc.unfreeze()
    gc.collect()
  gc.freeze()


def _known(flag: str) -> bool:
  """Whether this XLA has a flag; an unknown one ends a process."""
  if importlib.util.find_spec('libtpu'):
    return False  # The TPU's compiler reads the flags as well.
  return not subprocess.run(
      [sys.executable, '-c', 'import jax; jax.numpy.zeros(1)'],
      env={**os.environ, 'XLA_FLAGS': flag, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True, check=False).returncode


def _processor() -> str:
  """Stands for what instructions it has."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  has = next((line for line in lines if line.lower().startswith(
      ('flags', 'features'))), platform.processor())
  return hashlib.sha256(has.encode()).hexdigest()[:16]
