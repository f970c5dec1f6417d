"""The laboratory of planted knowledge: six methods, and a model never taught."""

from __future__ import annotations

from collections.abc import Iterator
import pathlib

from experiments.tables import cells
from experiments.tables import stored

# Row -> folder in lab/.
_METHODS = {
    'MANSU': 'mansu', 'MANSU without floor': 'mansu_no_floor',
    'GradDiff': 'graddiff', 'NPO': 'npo', 'SimNPO': 'simnpo', 'RMU': 'rmu',
    'never taught': 'gold'}
_PRECISIONS = ('fp', 'nf4')


def lab(results: pathlib.Path) -> str:
  """What is known, kept, brought back and hidden; a row for each method."""
  runs = {name: found[0] for name, folder in _METHODS.items()
          if (found := stored.find(results, f'lab/{folder}'))}
  rows = [(name, *_cells(run.record)) for name, run in runs.items()]
  return cells.blocks(cells.table(
      ('', *(f'known, {cells.READINGS[reading]}, {cells.precision(p)}'
             for reading in stored.CHOICES for p in _PRECISIONS),
       'NF4 brings back',
       *(f'held-out drop, {cells.precision(p)}' for p in _PRECISIONS),
       'perplexity, fp', 'hidden share, fp', 'CAD', 'CAD, random circuits'),
      rows), cells.code(runs.values()))


def _cells(record: stored.Record) -> Iterator[str]:
  """The figures of a run."""
  for reading in stored.CHOICES:
    for p in _PRECISIONS:
      yield cells.number(record['forgetting'][reading]['known'][p]['value'])
  yield cells.estimate(
      record['properties']['Q']['by_scheme']['nf4'], 2, True)
  for p in _PRECISIONS:
    yield cells.signed(
        record['properties']['R']['by_precision'][p]['value'])
  yield cells.change(*(record['perplexity'][model]['fp']
                       for model in reversed(stored.MODELS)))
  yield cells.estimate(record['structure'].get('hidden_share', {}).get('fp'))
  cad = record.get('cad', {})
  random = cad.get('nulls', {}).get('random_circuits', {})
  yield cells.number(cad.get('value'))
  yield cells.number(random.get('mean'))
