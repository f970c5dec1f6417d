"""Protocol of a process of `attribution_against`.

The process loads the model, warms up, and then runs once for each line that it
reads, so that processes take turns. This file imports the standard library
only, because the reference runs in its own environment.
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
  """Writes lines of JSON: memory after loading, then figures of each run.

  The first argument of the command line is the job's JSON file. A line that is
  read names the file for the scores of that run; an empty line discards them.

  Args:
    prepare: Function from the job to the timed function. It calls
      `job['loaded']` after it has loaded the model. The timed function returns
      the scores [S, G].
  """
  job = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding='utf-8'))
  memory = {}
  run = prepare(job | {
      'loaded': lambda: memory.update(rss_loaded=rss('VmRSS'))})
  run()
  _print(memory)
  for line in sys.stdin:
    pathlib.Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')
    start, cpu = time.perf_counter(), time.process_time()
    scores = run()
    _print({'seconds': time.perf_counter() - start,
            'cpu_seconds': time.process_time() - cpu,
            'rss_peak': rss('VmHWM')})
    if line.strip():
      scores.tofile(line.strip())


def rss(field: str) -> int:
  """Resident bytes: now (VmRSS), or the peak since the last reset (VmHWM).

  RssAnon: now, without mapped files.
  """
  status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  return 1024 * int(re.search(rf'{field}:\s+(\d+) kB', status)[1])


def _print(fields: dict[str, Any]) -> None:
  print(json.dumps(fields), flush=True)
