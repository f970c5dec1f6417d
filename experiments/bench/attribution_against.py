"""Compares edge attribution with the reference, each in its own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from mansu_jax.circuits.edges import edges
from mansu_jax.models.io import hf_io

RECIPE = '''{python} cannot import the reference. The reference needs its own
environment, because it pins versions that this package does not:

  python3.11 -m venv ref && ref/bin/pip install transformer_lens==2.18.0 torch
  ref/bin/pip install "numpy>=2" "pandas>=2.3"  # If pyarrow needs them.
  ref/bin/pip install --no-deps \\
      git+https://github.com/hannamw/EAP-IG@795f560
  python -m experiments.bench.attribution --reference \\
      --reference_python=ref/bin/python
'''
_PACKAGE = 'experiments.bench.'
_OURS = 'mansu_jax, all edges'
_REFERENCE = 'EAP-IG of Hanna et al.'


def importable(python: str) -> bool:
  """Whether an interpreter can import the reference."""
  return subprocess.run(
      [python, '-c', 'import eap.attribute, transformer_lens'],
      capture_output=True, check=False).returncode == 0


def measure(
    model: Any, pairs: Sequence[Sequence[Any]], steps: int, rounds: int,
    python: str) -> list[dict[str, Any]]:
  """Measures time and memory of all processes on the same weights and pairs.

  Args:
    model: Model; written to a directory that all processes read.
    pairs: Clean ids, corrupted ids, answer and corrupted answer of each pair.
    steps: Steps M of the path.
    rounds: Timed runs of each process, in turn, after one that warms up.
    python: Interpreter with the packages of the reference.

  Returns:
    One dictionary per process: `name`; the smallest and the median of wall
    clock and processor seconds; `rss_loaded`, resident bytes with the loaded
    model; `rss_peak`, the largest resident bytes during a run; `difference`,
    the largest difference from our scores relative to our largest score.
  """
  with contextlib.ExitStack() as stack:
    root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    hf_io.write(root / 'model', model.config, model.params, model.tokenizer)
    start = lambda module, program, **more: stack.enter_context(
        _Contender(root, module, program, {
            'model': f'{root}/model', 'pairs': pairs, 'steps': steps, **more}))
    contenders = {
        _OURS: start('attribution_ours', sys.executable),
        _REFERENCE: start(
            'attribution_reference', python, weight_gradients=True),
        f'{_REFERENCE}, no weight gradients': start(
            'attribution_reference', python, weight_gradients=False)}
    for _ in range(rounds):
      for contender in contenders.values():
        contender.run()
    shape = edges.is_edge(model.config).shape
    scores = {name: c.scores(shape) for name, c in contenders.items()}
    return [
        contender.result() | {'name': name, 'difference': float(
            np.abs(scores[name] - scores[_OURS]).max()
            / np.abs(scores[_OURS]).max())}
        for name, contender in contenders.items()]


class _Contender(contextlib.AbstractContextManager):
  """A process that computes scores on request."""

  def __init__(self, root, module, python, job):
    self._scores = root / f'{len([*root.iterdir()])}.f32'
    path = self._scores.with_suffix('.json')
    path.write_text(json.dumps(job), encoding='utf-8')
    self._process = subprocess.Popen(
        [python, '-m', _PACKAGE + module, str(path)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True)
    self._loaded, self._runs = next(self._lines()), []

  def __exit__(self, *unused):
    self._process.stdin.close()
    self._process.wait()

  def _lines(self) -> Iterator[dict[str, Any]]:
    """JSON lines of the process; skips lines that libraries print."""
    for line in self._process.stdout:
      if line.startswith('{'):
        yield json.loads(line)
    raise RuntimeError(f'{self._process.args} ended; see its error above.')

  def run(self) -> None:
    """Runs once; the process writes the scores to its file."""
    print(self._scores, file=self._process.stdin, flush=True)
    self._runs.append(next(self._lines()))

  def scores(self, shape: tuple[int, int]) -> np.ndarray:
    """Scores [S, G] of the last run; ends the process first."""
    self.__exit__()
    return np.fromfile(self._scores, np.float32).reshape(shape)

  def result(self) -> dict[str, Any]:
    """Statistics over all runs."""
    values = lambda key: [run[key] for run in self._runs]
    return {
        'seconds': min(values('seconds')),
        'median_seconds': float(np.median(values('seconds'))),
        'cpu_seconds': min(values('cpu_seconds')),
        'median_cpu_seconds': float(np.median(values('cpu_seconds'))),
        'rss_loaded': self._loaded['rss_loaded'],
        'rss_peak': max(values('rss_peak'))}


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
  """Lines of a Markdown table; ratios are to the first row, ours."""
  above = lambda r: r['rss_peak'] - r['rss_loaded']
  ours = results[0]
  yield ('| | seconds | times ours | processor seconds | times ours |'
         ' peak above the loaded model | times ours | difference |')
  yield '|---|---|---|---|---|---|---|---|'
  for r in results:
    yield (
        f'| {r["name"]} | {r["seconds"]:.2f} |'
        f' {r["seconds"] / ours["seconds"]:.1f} | {r["cpu_seconds"]:.2f} |'
        f' {r["cpu_seconds"] / ours["cpu_seconds"]:.1f} |'
        f' {above(r) / 1e6:.0f} MB | {above(r) / above(ours):.1f} |'
        f' {r["difference"]:.1e} |')
