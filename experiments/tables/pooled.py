"""The test relations, pooled over relations and seeds."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from experiments.tables import cells
from experiments.tables import stored
from mansu_jax.report import words
from mansu_jax.report.sections import properties
from mansu_jax.statistics import seeds

RELATIONS = {
    'region': 'regions', 'emblem': 'customs and symbols',
    'synonym': 'synonyms', 'tool': 'tools'}
# Forgotten by the recipe of `former_defaults.flags`.
FORMER_DEFAULTS = {
    'state_capital': 'state capitals', 'us_city': 'American cities',
    'city': 'cities', 'homeland': 'homelands', 'opposite': 'opposites'}
# Forgotten by the recipe of `former.flags`.
FORMER = {
    'author': 'authors', 'currency': 'currencies', 'element': 'elements',
    'language': 'languages', 'landmark_europe': "Europe's landmarks",
    'washington': 'George Washington'}
# Its guesses cannot be measured, so that what it knows is not comparable.
_APART = 'George Washington'
PRECISIONS = ('fp', 'nf4')
_PARTS = {'generation': 'plainly asked',
          'generation_few_shot': 'after three examples'}
_KEPT = {'retain_heldout': 'held-out facts', 'retain': 'retained facts'}
RESAMPLES = 2000

Lines = list[list[stored.Line]]  # Answers of each seed.


class Runs:
  """Runs of several relations, of which each has the same seeds.

  Attributes:
    seeds: the seeds.
    relations: runs by relation and seed.
  """

  def __init__(self, relations: Mapping[str, Sequence[stored.Run]]):
    """Keeps the seeds that every relation has.

    Args:
      relations: stored runs by relation; without empty ones.
    """
    by_seed = {name: {run.seed: run for run in runs}
               for name, runs in relations.items()}
    self.seeds = sorted(
        set.intersection(*(set(runs) for runs in by_seed.values())))
    self.relations = {name: [runs[seed] for seed in self.seeds]
                      for name, runs in by_seed.items()}

  def only(self, numbers: Collection[int]) -> Runs:
    """The same with some of the seeds."""
    return Runs({name: [run for run in runs if run.seed in numbers]
                 for name, runs in self.relations.items()})

  def __iter__(self) -> Iterator[stored.Run]:
    for runs in self.relations.values():
      yield from runs

  def asked(self, *ways: str) -> Lines:
    """Answers on forget facts of each seed, of all relations together."""
    return self._pooled(lambda run: run.asked(*ways))

  def split(self, name: str) -> Lines:
    """Answers of a split, likewise."""
    return self._pooled(lambda run: run.split(name))

  def _pooled(
      self, answers: Callable[[stored.Run], list[stored.Line]]) -> Lines:
    """The answers that a function takes from each run, by seed."""
    return [[line for runs in self.relations.values()
             for line in answers(runs[i])] for i in range(len(self.seeds))]


def test(
    results: pathlib.Path, relations: Mapping[str, str] = RELATIONS) -> str:
  """All relations and seeds together, each set, and the verdicts.

  Args:
    results: folder of the stored runs.
    relations: names of those that one recipe forgot, by folder.
  """
  found = find(results, relations)
  if not found or not Runs(found).seeds:
    return cells.NOTHING
  runs = Runs({name: of for name, of in found.items() if name != _APART})
  return cells.blocks(
      title(runs), readings(runs), cost(runs), by_reading(found),
      by_relation(found), structure(found), verdicts(found),
      cells.code(run for of in found.values() for run in of))


def find(
    results: pathlib.Path, relations: Mapping[str, str] = RELATIONS,
    folder: str = 'test',
) -> dict[str, list[stored.Run]]:
  """The stored runs of relations, by name; without empty ones."""
  found = {name: stored.find(results, f'{folder}/{relation}')
           for relation, name in relations.items()}
  return {name: runs for name, runs in found.items() if runs}


def title(runs: Runs) -> str:
  """Which relations and seeds are pooled."""
  names = ', '.join(runs.relations)
  numbers = ', '.join(map(str, runs.seeds))
  return f'Pooled over {names}; seeds {numbers}.'


def readings(runs: Runs) -> str:
  """Accuracy and known share of each reading."""
  rows = []
  for label, ways in _rows_of_readings():
    lines = runs.asked(*ways)
    if not all(lines):
      continue
    rows.append((label, *_sizes(lines), *(
        cells.number(_accuracy(lines, model, p))
        for model in stored.MODELS for p in PRECISIONS), *(
            cells.number(_guessed(lines, p)) for p in PRECISIONS), *(
                _over_seeds(known(lines, p)) for p in PRECISIONS)))
  return cells.table(
      ('reading', 'facts', 'questions', 'base fp', 'base NF4', 'unlearned fp',
       'unlearned NF4', 'guessing fp', 'guessing NF4', 'known, fp',
       'known, NF4'), rows)


def _rows_of_readings() -> Iterator[tuple[str, tuple[str, ...]]]:
  """Name and ways of asking of each reading, and of those that it joins."""
  for reading, label in cells.READINGS.items():
    ways = stored.READINGS[reading]
    yield label, ways
    if len(ways) > 1:
      for way in ways:
        yield f'of these: {_PARTS[way]}', (way,)


def _sizes(lines: Lines) -> tuple[str, str]:
  """Number of facts of all seeds, and of questions of all seeds."""
  facts = {line['fact'] for own in lines for line in own}
  return f'{len(facts):,}', f'{sum(map(len, lines)):,}'


def _accuracy(lines: Lines, model: str, precision: str) -> float:
  """Mean over seeds of the share of right answers."""
  return float(np.mean([
      stored.right(own, model, precision).mean() for own in lines]))


def _guessed(lines: Lines, precision: str) -> float:
  """Mean over seeds of the ignorance of the unlearned models."""
  return float(np.mean([np.mean([
      stored.ignorance(line, 'unlearned', precision) for line in own])
                        for own in lines]))


def known(lines: Lines, precision: str) -> dict[str, Any]:
  """Known share at a precision, over seeds."""
  return seeds.known_share(
      [stored.columns(own, precision) for own in lines],
      resamples=RESAMPLES).record()


def brought_back(lines: Lines, scheme: str) -> dict[str, Any]:
  """Knowledge that a quantizer brings back, over seeds."""
  return seeds.known_gap(
      *([stored.columns(own, p) for own in lines] for p in (scheme, 'fp')),
      resamples=RESAMPLES).record()


def dropped(lines: Lines, precision: str) -> dict[str, Any]:
  """Accuracy drop from the base, over seeds."""
  lost = [stored.right(own, 'base', precision)
          - stored.right(own, 'unlearned', precision) for own in lines]
  return seeds.mean_difference(
      lost, [stored.facts(own) for own in lines], largest=1.0,
      resamples=RESAMPLES).record()


def cost(runs: Runs) -> str:
  """R and Q, with the bounds that decide."""
  rows = []
  for split, label in _KEPT.items():
    lines = runs.split(split)
    if all(lines):
      for p in PRECISIONS:
        rows.append(_bounded(
            f'accuracy drop on {label}, {cells.precision(p)}', lines,
            dropped(lines, p)))
  lines = runs.asked(*stored.CHOICES)
  rows.append(_bounded(
      'knowledge that NF4 brings back, choices', lines,
      brought_back(lines, 'nf4')))
  for reading, label in cells.READINGS.items():
    lines = runs.asked(*stored.READINGS[reading])
    if all(lines):
      rows.append(_bounded(f'the same, {label}', lines,
                           brought_back(lines, 'nf4')))
  return cells.table(
      ('', 'facts', 'questions', 'over seeds', 'upper bound', 'deviation'),
      rows)


def _bounded(
    label: str, lines: Lines, found: dict[str, Any]) -> tuple[str, ...]:
  return (label, *_sizes(lines), cells.estimate(found, 3, True),
          cells.signed(found['upper']), cells.number(found['deviation'], 3))


def by_reading(found: Mapping[str, Sequence[stored.Run]]) -> str:
  """Each set by reading: what is known, avoided, and what could pass F."""
  rows = []
  for name, runs in found.items():
    one = Runs({name: runs})
    lines = {key: one.asked(*ways) for key, ways in stored.READINGS.items()}
    rows.append((name, *(
        f'{cells.estimate(known(own, "fp"))}, guessing'
        f' {cells.number(_guessed(own, "fp"))}' if all(own) else cells.NONE
        for own in lines.values()), _listed(
            (reading, p) for run in runs
            for reading in stored.READINGS
            for p in run.record['forgetting'].get(reading, {}).get(
                'avoided', ())), _listed(
                    tuple(key) for run in runs
                    for key in run.record['properties']['F'].get(
                        'cannot_pass', ()))))
  return cells.table(
      ('forgotten', *(f'known, {label}' for label in cells.READINGS.values()),
       'avoids the answer (seeds)', 'no model could pass F (seeds)'), rows)


def _listed(found: Iterable[tuple[str, str]]) -> str:
  """Readings and precisions, with the number of seeds of each."""
  return ', '.join(
      f'{cells.READINGS[reading]} {cells.precision(p)} ({count})'
      for (reading, p), count in collections.Counter(found).items()) or 'none'


def by_relation(found: Mapping[str, Sequence[stored.Run]]) -> str:
  """Each relation over its own seeds: the worst that decides, R and Q."""
  rows = []
  for name, runs in found.items():
    one = Runs({name: runs})
    worst = [max(
        (known(lines, p) for reading, ways in stored.READINGS.items()
         if properties.decides(runs[0].record, reading)
         and all(lines := one.asked(*ways))),
        key=lambda entry: -np.inf if entry['value'] is None else entry['value'])
             for p in PRECISIONS]
    rows.append((
        name, str(len(one.seeds)), *map(_over_seeds, worst), *(
            cells.estimate(dropped(one.split('retain_heldout'), p), 3, True)
            for p in PRECISIONS),
        cells.estimate(
            brought_back(one.asked(*stored.CHOICES), 'nf4'), 3, True)))
  return cells.table(
      ('forgotten', 'seeds', 'known in the worst reading, fp', 'the same, NF4',
       'held-out drop, fp', 'the same, NF4', 'NF4 brings back'), rows)


def structure(found: Mapping[str, Sequence[stored.Run]]) -> str:
  """Hidden share and attacks of each relation: mean and range over seeds."""
  rows = []
  for name, runs in found.items():
    records = [run.record for run in runs]
    measured = [r['structure'] for r in records
                if 'hidden_share' in r.get('structure', {})]
    valid = sum(all(gate['holds'] is True for gate in one['gates'].values())
                for one in measured)
    rows.append((name, str(len(runs)), *(_range([
        one['hidden_share'][p]['value'] for one in measured])
                                         for p in PRECISIONS),
                 f'{valid} of {len(runs)}' if measured else cells.NONE, _range([
                     difference['value'] for r in records if (
                         difference := r.get('attack_verdict', {}).get(
                             'difference'))], True)))
  return cells.table(
      ('forgotten', 'seeds', 'hidden share, fp', 'the same, NF4', 'gates hold',
       'attack: gain less guessing'), rows)


def verdicts(found: Mapping[str, Sequence[stored.Run]]) -> str:
  """The verdict on each property, by relation and seed."""
  rows = [(name, *(
      ', '.join(words.verdict(run.record['properties'][letter]['passed'])
                for run in runs) for letter in 'FRQS'))
          for name, runs in found.items()]
  return cells.table(
      ('forgotten, by seed', 'F', 'R', 'Q', 'S'), rows, labels=5)


def _range(values: Sequence[float], sign: bool = False) -> str:
  """Mean of the seeds and, of several, their least and largest."""
  if not values:
    return cells.NONE
  form = lambda x: cells.signed(x, 2) if sign else cells.number(x)
  mean, ends = form(float(np.mean(values))), ''
  if len(values) > 1:
    ends = f' ({form(min(values))} to {form(max(values))})'
  return f'{mean}{ends}'


def _over_seeds(found: dict[str, Any]) -> str:
  """The value with its interval and, of several seeds, their deviation."""
  text = cells.estimate(found)
  deviation = found['deviation']
  return text if deviation is None else (
      f'{text}, deviation {cells.number(deviation)}')
