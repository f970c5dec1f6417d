"""The quickstart: README's tables, and its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.tables import cells
from experiments.tables import stored
from mansu_jax.report import words
from mansu_jax.report.sections import summary
from mansu_jax.statistics import seeds

_NAME = 'quickstart'
_PRECISIONS = ('fp', 'nf4')
_SHOWN = 'choice_same_subject'  # Decides nothing, and has no guesses.
_WAYS = cells.WAYS | {'reverse': 'which country has this capital?',
                      _SHOWN: 'choice of four cities of the same country'}
_KEPT = {'retain': 'retained facts, phrasings not trained on',
         'retain_heldout': 'held-out facts'}
# Rows of README's first table: name, and the stored run.
_FIRST = (
    ('GradDiff, all weights', 'premise/graddiff_1e-5'),
    ('GradDiff, weights in bfloat16', 'premise/graddiff_bfloat16_1e-4'),
    ('MANSU without floor, projection and quantizer in the loop',
     'premise/circuit'),
    ('MANSU, former recipe', 'premise/mansu_four'))
_QUANTIZERS = {
    'nf4': 'NF4', 'fp4': 'FP4', 'int4_g128': 'INT4', 'q4_k': 'Q4_K'}

Runs = Sequence[stored.Run]


def screen(results: pathlib.Path) -> str:
  """What the quickstart prints at its end, of the first stored seed."""
  runs = stored.find(results, _NAME)
  if not runs:
    return cells.NOTHING
  return '\n'.join(('```', *summary.lines(runs[0].record), '```'))


def first(results: pathlib.Path) -> str:
  """What is forgotten, at what cost, and what rounding brings back."""
  rows = []
  for name, folder in _FIRST:
    for run in stored.find(results, folder)[:1]:
      if not rows:
        rows.append(('base', *_first_cells(run.record, 'base')))
      rows.append((name, *_first_cells(run.record, 'unlearned')))
  return cells.table(
      ('', 'trained, fp', 'right, fp', 'right, NF4', 'known, worst',
       'held-out', 'perplexity', *(
           f'{name} brings back' for name in _QUANTIZERS.values())), rows)


def _first_cells(record: stored.Record, model: str) -> Iterator[str]:
  """Cells of a model in README's first table."""
  yield cells.number(record['accuracy']['forget'][model]['fp']['value'])
  found = record['forgetting']['choice_unseen'][model]
  yield from (cells.number(found[p]['value']) for p in _PRECISIONS)
  yield cells.NONE if model == 'base' else cells.number(
      worst_known(record, 'fp'))
  yield cells.number(record['accuracy']['retain_heldout'][model]['fp']['value'])
  yield cells.number(record['perplexity'][model]['fp'], 1)
  brought = record['properties']['Q']['by_scheme']
  for scheme in _QUANTIZERS:
    yield cells.NONE if model == 'base' or scheme not in brought else (
        cells.estimate(brought[scheme], 2, True))


def worst_known(record: stored.Record, precision: str) -> float | None:
  """Share of the base's knowledge that is left in the worst reading."""
  found = [phi[precision]['value']
           for phi in record['properties']['F'].get('by_reading', {}).values()]
  return max((1 - x for x in found if x is not None), default=None)


def quickstart(results: pathlib.Path) -> str:
  """Accuracy over seeds, and every other measure by seed."""
  runs = stored.find(results, _NAME)
  if not runs:
    return cells.NOTHING
  return cells.blocks(answered(runs), by_seed(runs), cells.code(runs))


def options(runs: Runs) -> dict[str, int]:
  """Options of the bootstrap; those of the record if there is one run."""
  config = runs[0].record['config']
  return {'resamples': config['eval']['bootstrap'], 'seed': config['seed']}


def answered(runs: Runs) -> str:
  """Share of questions answered right, by way of asking.

  Args:
    runs: the seeds of one setting. Figures are means over them.
  """
  if not runs:
    return cells.NOTHING
  rows = []
  for way, label in _WAYS.items():
    lines = [run.asked(way) for run in runs]
    if all(lines):
      rows.append((f'{label} ({_count(lines)})', *_answered_cells(runs, lines),
                   *(_guessed_cells(lines) if way != _SHOWN else (
                       cells.NONE for _ in _PRECISIONS))))
  for split, label in _KEPT.items():
    lines = [run.split(split) for run in runs]
    if all(lines):
      rows.append((f'{label} ({_count(lines)})', *_answered_cells(runs, lines),
                   '', ''))
  rows.append(('perplexity of text not trained on', *_perplexities(runs), '',
               ''))
  return cells.table(
      ('', 'base fp', 'base NF4', 'unlearned fp', 'unlearned NF4',
       'guessing fp', 'guessing NF4'), rows)


def _count(lines: Sequence[list[stored.Line]]) -> str:
  """Number of questions of a seed; the least and the most if they differ."""
  sizes = sorted({len(own) for own in lines})
  return '-'.join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))


def _guessed_cells(lines: Sequence[list[stored.Line]]) -> Iterator[str]:
  """How often the unlearned model is right without knowing the fact."""
  for p in _PRECISIONS:
    yield cells.number(float(np.mean([
        stored.ignorance(line, 'unlearned', p)
        for own in lines for line in own])))


def _answered_cells(
    runs: Runs, lines: Sequence[list[stored.Line]]) -> Iterator[str]:
  """The base's accuracy and, with intervals, the unlearned model's."""
  facts = [stored.facts(own) for own in lines]
  for model in stored.MODELS:
    for precision in _PRECISIONS:
      found = seeds.share(
          [stored.right(own, model, precision) for own in lines], facts,
          **options(runs))
      yield (cells.number(found.value) if model == 'base' else
             cells.estimate(found.record()))


def _perplexities(runs: Runs) -> Iterator[str]:
  """Means over seeds; the unlearned model's with the change from the base."""
  mean = lambda model, p: float(np.mean([
      run.record['perplexity'][model][p] for run in runs]))
  for model in stored.MODELS:
    for p in _PRECISIONS:
      text = cells.number(mean(model, p), 1)
      yield text if model == 'base' else (
          f'{text} ({cells.change(mean(model, p), mean("base", p))})')


class _Measure(NamedTuple):
  """A row of the table by seed."""

  name: str
  values: Sequence[float | None]  # Of the seeds.
  estimate: dict[str, Any] | None = None  # Over seeds; None: no interval.
  form: Callable[[float | None], str] = cells.number
  digits: int = 2
  sign: bool = False


def by_seed(runs: Runs) -> str:
  """Measures by seed, their mean with interval, and their deviation.

  Args:
    runs: the seeds of one setting.
  """
  several = len(runs) > 1
  columns = ('', *(('over seeds', 'deviation') if several else ()),
             *(f'seed {run.seed}' for run in runs))
  rows = []
  for one in _measures(runs):
    known = [value for value in one.values if value is not None]
    if not known:
      continue
    mean = (cells.estimate(one.estimate, one.digits, one.sign)
            if one.estimate else one.form(float(np.mean(known))))
    single = [one.form(value) for value in one.values]
    if several:
      deviation = (float(np.std(known, ddof=1)) if len(known) > 1 else None)
      form = cells.percent if one.form is cells.percent else (
          lambda x, digits=one.digits: cells.number(x, digits))
      rows.append((one.name, mean, form(deviation), *single))
    else:
      rows.append((one.name, mean))
  for letter in 'FRQS':
    found = [words.verdict(run.record['properties'][letter]['passed'])
             for run in runs]
    rows.append((f'property {letter}', *(('', '') if several else ()), *found))
  return cells.table(columns, rows)


def _measures(runs: Runs) -> Iterator[_Measure]:
  """What is known, kept, brought back and hidden, and what it took."""
  for reading, label in cells.READINGS.items():
    lines = [run.asked(*stored.READINGS[reading]) for run in runs]
    if all(lines):
      for p in _PRECISIONS:
        found = seeds.known_share(
            [stored.columns(own, p) for own in lines], **options(runs)).record()
        yield _Measure(f'known, {label}, {cells.precision(p)}',
                       found['by_seed'], found)
  yield _brought_back(runs)
  for split, label in {'retain_heldout': 'held-out',
                       'retain': 'retained'}.items():
    for p in _PRECISIONS:
      yield _Measure(
          f'accuracy drop on {label} facts, {cells.precision(p)}',
          *_drop(runs, split, p), cells.signed, 3, True)
  yield from _recorded(runs)


def _brought_back(runs: Runs) -> _Measure:
  lines = [run.asked(*stored.CHOICES) for run in runs]
  found = seeds.known_gap(
      *([stored.columns(own, p) for own in lines] for p in ('nf4', 'fp')),
      **options(runs)).record()
  return _Measure('knowledge that NF4 brings back', found['by_seed'], found,
                  cells.signed, 3, True)


def _drop(
    runs: Runs, split: str, precision: str
) -> tuple[list[float], dict[str, Any]]:
  """Accuracy drop from the base by seed, and over seeds."""
  lines = [run.split(split) for run in runs]
  found = seeds.mean_difference(
      [stored.right(own, 'base', precision)
       - stored.right(own, 'unlearned', precision) for own in lines],
      [stored.facts(own) for own in lines], largest=1.0,
      **options(runs)).record()
  return found['by_seed'], found


def _recorded(runs: Runs) -> Iterator[_Measure]:
  """Measures whose intervals the records have, each for its own seed."""
  def measure(name, find, form=cells.number, digits=2, sign=False):
    entries = [find(run.record) or {} for run in runs]
    alone = len(runs) == 1 and 'interval' in entries[0]
    return _Measure(name, [entry.get('value') for entry in entries],
                    entries[0] if alone else None, form, digits, sign)

  value = lambda x: {'value': x}
  for p in _PRECISIONS:
    yield measure(f'hidden share, {cells.precision(p)}', lambda r, p=p: r.get(
        'structure', {}).get('hidden_share', {}).get(p))
  yield measure(
      'retraining: gain on untaught facts less that on facts never known',
      lambda r: r.get('attack_verdict', {}).get('difference'), cells.signed, 3,
      True)
  yield measure('CAD, on the circuit', lambda r: r.get('cad'))
  yield measure('CAD, on random circuits', lambda r: value(
      r.get('cad', {}).get('nulls', {}).get('random_circuits', {}).get('mean')))
  yield measure('weights moved', lambda r: value(
      r['survival']['nf4']['moved']), cells.percent)
  yield measure('minutes', lambda r: value(None if _resumed(r) else sum(
      stage['seconds'] for stage in r['stages']) / 60),
                lambda x: cells.number(x, 1), 1)
  yield measure('peak memory, GB', lambda r: value(None if _resumed(r) else max(
      stage['peak_bytes'] or 0 for stage in r['stages']) / 1e9),
                lambda x: cells.number(x, 1), 1)


def _resumed(record: stored.Record) -> bool:
  """Whether the run restored its training, so that its stages lack it."""
  return any(stage['name'] == 'unlearn' and stage.get('tokens') == 0
             for stage in record['stages'])
