"""Edge attribution beside the reference, each in a process, in turn."""

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

RECIPE = '''The reference cannot be imported by {python}. It wants an
environment of its own, for it pins what we do not:

  python3.11 -m venv ref && ref/bin/pip install transformer_lens==2.18.0 torch
  ref/bin/pip install "numpy>=2" "pandas>=2.3"  # Where pyarrow asks for them.
  ref/bin/pip install --no-deps \\
      git+https://github.com/hannamw/EAP-IG@795f560
  python -m experiments.bench.attribution --reference \\
      --reference_python=ref/bin/python
'''
_PACKAGE = 'experiments.bench.'
_OURS = 'mansu_jax, all edges'
_REFERENCE = 'EAP-IG of Hanna et al.'


def importable(python: str) -> bool:
  """Whether an interpreter has the reference's packages."""
  return subprocess.run(
      [python, '-c', 'import eap.attribute, transformer_lens'],
      capture_output=True, check=False).returncode == 0


def measure(
    model: Any, pairs: Sequence[Sequence[Any]], steps: int, rounds: int,
    python: str) -> list[dict[str, Any]]:
  """Times and weighs all contenders on the same weights and pairs.

  Args:
    model: the model; written to a directory that all read.
    pairs: each clean ids, corrupted ids, answer and corrupted answer.
    steps: M.
    rounds: runs of each, in turn, after one that warms up.
    python: an interpreter that has the reference.

  Returns:
    Of each, `name`, the least and median `seconds` and `cpu_seconds`, the
    resident bytes with the model loaded (`rss_loaded`), at most during a run
    (`rss_peak`), and the largest `difference` from our scores, as a share of
    the largest.
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
  """A process that runs when it is told to."""

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
    """What it says; libraries may print something else."""
    for line in self._process.stdout:
      if line.startswith('{'):
        yield json.loads(line)
    raise RuntimeError(f'{self._process.args} ended; see its error above.')

  def run(self) -> None:
    """One run; the scores of the last stay in a file."""
    print(self._scores, file=self._process.stdin, flush=True)
    self._runs.append(next(self._lines()))

  def scores(self, shape: tuple[int, int]) -> np.ndarray:
    """Of the last run, [S, G]; waits until they are written."""
    self.__exit__()
    return np.fromfile(self._scores, np.float32).reshape(shape)

  def result(self) -> dict[str, Any]:
    """Of all runs."""
    of = lambda key: [run[key] for run in self._runs]
    return {
        'seconds': min(of('seconds')),
        'median_seconds': float(np.median(of('seconds'))),
        'cpu_seconds': min(of('cpu_seconds')),
        'median_cpu_seconds': float(np.median(of('cpu_seconds'))),
        'rss_loaded': self._loaded['rss_loaded'],
        'rss_peak': max(of('rss_peak'))}


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
  """Markdown; ratios are to the first, ours."""
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
