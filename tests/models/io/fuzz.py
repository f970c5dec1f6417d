"""Damaged files, loaded as a user would: a model, or one clear line.

Two kinds: `gguf` files and `hf`, directories of Hugging Face's form. Every
mutation is made from (seed, index) alone. By hand:

  python -m tests.models.io.fuzz --kind=hf --first=0 --count=1000000

prints how many loaded and were refused, and each failure: another exception
than ValueError, a message of several lines, a warning, over a second of CPU
time, over 100 MB of memory, or a process that died. `--first=INDEX --count=1
--keep=PATH` repeats one and keeps its file or directory.
"""

import argparse
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings

from tests.models.io import gguf_fuzz
from tests.models.io import hf_fuzz

# Each has `bases()`, `mutate(index)` -> (damaged, how), `write(damaged, path)`,
# and `load(path)`.
KINDS = {'gguf': gguf_fuzz, 'hf': hf_fuzz}
MOST_SECONDS, MOST_BYTES = 1.0, 100 * 2**20
_KILL_SECONDS = 20  # Of CPU time: the process is in a loop.
_STUCK_SECONDS = 600  # It waits for something.
_CHUNK = 100_000  # Mutations of a process.
_LONGEST_MESSAGE = 2000


def judge(kind: str, path: pathlib.Path) -> tuple[str, str]:
  """Loads a file: (`loaded` | `refused` | `failed`, why it failed)."""
  started = time.process_time()
  try:
    with warnings.catch_warnings(action='error'):
      KINDS[kind].load(path)
    outcome, why = 'loaded', ''
  except ValueError as error:
    message = str(error)
    clear = '\n' not in message and len(message) <= _LONGEST_MESSAGE and (
        type(error) is ValueError)  # pylint: disable=unidiomatic-typecheck
    outcome, why = ('refused', '') if clear else ('failed', repr(error))
  except BaseException as error:  # pylint: disable=broad-except
    outcome, why = 'failed', f'{type(error).__name__}: {error}'
  seconds = time.process_time() - started
  if seconds > MOST_SECONDS:
    return 'failed', f'{seconds:.1f} s of CPU time; {outcome} {why}'
  return outcome, why


def try_one(kind: str, path: pathlib.Path, index: int) -> tuple[str, str]:
  """Judges one mutation; the path is written to."""
  damaged, how = KINDS[kind].mutate(index)
  KINDS[kind].write(damaged, path)
  outcome, why = judge(kind, path)
  return outcome, f'mutation {index} ({how}): {why}'


def _work(kind: str, first: int, count: int) -> None:
  """Tries a range within the limits; prints the counts as JSON."""
  counts, failures = {'loaded': 0, 'refused': 0, 'failed': 0}, []
  memory = '/dev/shm' if os.path.isdir('/dev/shm') else None  # No disk.
  with tempfile.TemporaryDirectory(dir=memory) as folder:
    path = pathlib.Path(folder) / f'x.{kind}'
    for base in KINDS[kind].bases():  # All that is imported and compiled once.
      KINDS[kind].write(base.data, path)
      KINDS[kind].load(path)
      judge(kind, path)
    _limit_memory()
    for index in range(first, first + count):
      print(index, file=sys.stderr)  # The last one is where it died.
      signal.setitimer(signal.ITIMER_PROF, _KILL_SECONDS)
      signal.setitimer(signal.ITIMER_REAL, _STUCK_SECONDS)
      outcome, why = try_one(kind, path, index)
      counts[outcome] += 1
      if outcome == 'failed':
        failures.append(why)
  print(json.dumps({'counts': counts, 'failures': failures}))


def _limit_memory() -> None:
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  most = pages * resource.getpagesize() + MOST_BYTES
  resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(kind: str, first: int, count: int) -> tuple[dict[str, int], list[str]]:
  """Tries a range in processes of their own: (counts, failures)."""
  total, failures, end = {}, [], first + count
  while first < end:
    size = min(_CHUNK, end - first)
    got, seen = _one_process(kind, first, size)
    if got is None:  # It died at `seen`; what came before is tried again.
      failures.append(f'the process died at mutation {seen}'
                      f' ({KINDS[kind].mutate(seen)[1]})')
      size = seen - first
      got = _one_process(kind, first, size)[0] if size else None
      size += 1
    for key, value in (got['counts'] if got else {}).items():
      total[key] = total.get(key, 0) + value
    failures += got['failures'] if got else []
    first += size
    print(f'to {first}: {total}, {len(failures)} failures', flush=True)
  return total, failures


def _one_process(
    kind: str, first: int, count: int) -> tuple[dict | None, int]:
  """What a process found, or None; and the last mutation that it began."""
  with tempfile.TemporaryFile('w+') as errors:
    done = subprocess.run(
        [sys.executable, '-m', 'tests.models.io.fuzz', '--work',
         f'--kind={kind}', f'--first={first}', f'--count={count}'],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        text=True, check=False, cwd=pathlib.Path(__file__).parents[3],
        env=os.environ | {
            'JAX_PLATFORMS': 'cpu', 'MALLOC_ARENA_MAX': '1',
            'TOKENIZERS_PARALLELISM': 'false'})
    errors.seek(0)
    lines = errors.read().splitlines()
  seen = [int(line) for line in lines if line.isdigit()]
  if not seen:
    raise RuntimeError('no mutation was tried: ' + ' '.join(lines[-5:]))
  if done.returncode:
    return None, seen[-1]
  return json.loads(done.stdout.splitlines()[-1]), seen[-1]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kind', choices=list(KINDS), required=True)
  parser.add_argument('--first', type=int, default=0)
  parser.add_argument('--count', type=int, default=1000)
  parser.add_argument('--keep', help='where to keep the mutation `first`')
  parser.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.work:
    _work(options.kind, options.first, options.count)
    return
  if options.keep:
    kind = KINDS[options.kind]
    kind.write(kind.mutate(options.first)[0], pathlib.Path(options.keep))
  _, failures = run(options.kind, options.first, options.count)
  print('\n'.join(failures))
  sys.exit(bool(failures))


if __name__ == '__main__':
  main()
