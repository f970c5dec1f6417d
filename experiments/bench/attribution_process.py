"""One contender of `attribution_against`, in a process of its own.

It loads, warms up, and then runs once for each line that it reads, so that
processes take turns. Needs nothing but the standard library, since the
reference has an environment of its own.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import pathlib
import re
import sys
import time
from typing import Any


def serve(prepare: Callable[[dict[str, Any]], Callable[[], Any]]) -> None:
  """Answers with lines of JSON: what loading took, then each run.

  Args:
    prepare: from the job, of `--job`'s file, to what is timed. It calls
      `job['loaded']` once the model is there, before anything is run; what is
      timed returns the scores, [S, G], and writes nothing.
  """
  job = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding='utf-8'))
  held = {}
  run = prepare(job | {'loaded': lambda: held.update(loaded=_rss('VmRSS'))})
  run()
  _say({'rss_loaded': held['loaded'], 'rss_warm': _rss('VmRSS')})
  for line in sys.stdin:
    pathlib.Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')
    start, cpu = time.perf_counter(), time.process_time()
    scores = run()
    _say({'seconds': time.perf_counter() - start,
          'cpu_seconds': time.process_time() - cpu,
          'rss_peak': _rss('VmHWM')})
    if line.strip():
      scores.tofile(line.strip())


def _rss(field: str) -> int:
  """Bytes of resident memory: now (VmRSS), or at most since the last reset."""
  status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  return 1024 * int(re.search(rf'{field}:\s+(\d+) kB', status)[1])


def _say(fields: dict[str, Any]) -> None:
  print(json.dumps(fields), flush=True)
