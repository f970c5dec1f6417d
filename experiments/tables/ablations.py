"""The default recipe on the test relations without one of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import pathlib
from typing import Any

import numpy as np

from experiments.tables import cells
from experiments.tables import pooled
from experiments.tables import stored
from mansu_jax.statistics import seeds

_DEFAULT = 'default (three quarters may change)'
# Folder in ablations/ -> name of the arm.
ARMS = {
    'projection_none': 'no projection',
    'projection_half': 'projection, half may change',
    'projection_quarter': 'projection, a quarter may change',
    'floor_none': 'no floor', 'floor_lift': 'floor at the last step',
    'projection_none_floor_none': 'neither projection nor floor',
    'loop_off': 'no quantizer in the loop',
    'floor_none_loop_off': 'neither floor nor loop',
    'random_circuit': 'random circuit'}
_KEPT = {'retain_heldout': 'held-out', 'retain': 'retained'}

Arms = Mapping[str, pooled.Runs]


def ablations(results: pathlib.Path) -> str:
  """What each arm forgets and costs, and its differences from the default."""
  arms = find(results)
  if len(arms) < 2:
    return cells.NOTHING
  return cells.blocks(
      pooled.title(arms[_DEFAULT]), measures(arms), differences(arms),
      cells.code(run for runs in arms.values() for run in runs))


def find(results: pathlib.Path) -> dict[str, pooled.Runs]:
  """The stored arms by name, each with the relations and seeds that all have.

  Args:
    results: folder of all stored runs.
  """
  found = {_DEFAULT: pooled.find(results), **{
      name: pooled.find(results, folder=f'ablations/{folder}')
      for folder, name in ARMS.items()}}
  found = {name: runs for name, runs in found.items() if runs}
  shared = set.intersection(*map(set, found.values())) if found else set()
  if not shared:
    return {}
  runs = {name: pooled.Runs({relation: of[relation] for relation in of
                             if relation in shared})
          for name, of in found.items()}
  numbers = set.intersection(*(set(one.seeds) for one in runs.values()))
  return {name: one.only(numbers) for name, one in runs.items()
          } if numbers else {}


def measures(arms: Arms) -> str:
  """Means over seeds of what is known, brought back and lost, by arm."""
  return cells.table(
      ('arm', *(f'known, {label}, {cells.precision(p)}' for label in (
          cells.READINGS[reading] for reading in stored.CHOICES)
                for p in pooled.PRECISIONS), 'NF4 brings back', *(
                    f'{label} drop, {cells.precision(p)}'
                    for label in _KEPT.values() for p in pooled.PRECISIONS), *(
                        f'perplexity, {cells.precision(p)}'
                        for p in pooled.PRECISIONS), 'weights moved',
       'codes changed'),
      ((name, *_measured(runs)) for name, runs in arms.items()))


def _measured(runs: pooled.Runs) -> Iterator[str]:
  for reading in stored.CHOICES:
    for p in pooled.PRECISIONS:
      yield cells.number(pooled.known(runs.asked(reading), p)['value'])
  yield cells.signed(
      pooled.brought_back(runs.asked(*stored.CHOICES), 'nf4')['value'])
  for split in _KEPT:
    for p in pooled.PRECISIONS:
      yield cells.signed(pooled.dropped(runs.split(split), p)['value'])
  records = [run.record for run in runs]
  for p in pooled.PRECISIONS:
    yield cells.change(float(np.mean([
        r['perplexity']['unlearned'][p] / r['perplexity']['base'][p]
        for r in records])), 1.0)
  for share in ('moved', 'changed_codes'):
    yield cells.percent(float(np.mean([
        r['survival']['nf4'][share] for r in records])))


def differences(arms: Arms) -> str:
  """Each arm less the default, question by question, with intervals."""
  default = arms[_DEFAULT]
  return cells.table(
      ('arm less the default', *(
          f'known, {cells.precision(p)}' for p in pooled.PRECISIONS), *(
              f'{label} drop, {cells.precision(p)}'
              for label in _KEPT.values() for p in pooled.PRECISIONS)),
      ((name, *_differences(runs, default)) for name, runs in arms.items()
       if name != _DEFAULT))


def _differences(arm: pooled.Runs, default: pooled.Runs) -> Iterator[str]:
  lines = [runs.asked(*stored.CHOICES) for runs in (arm, default)]
  for p in pooled.PRECISIONS:
    yield cells.estimate(known_difference(*lines, p), 2, True)
  for split in _KEPT:
    lines = [runs.split(split) for runs in (arm, default)]
    for p in pooled.PRECISIONS:
      yield cells.estimate(more_lost(*lines, p), 3, True)


def known_difference(
    arm: pooled.Lines, default: pooled.Lines, precision: str
) -> dict[str, Any]:
  """Share of the base's knowledge that is left in an arm, less the default's.

  Args:
    arm: answers of each seed.
    default: answers of each seed to the same questions.
    precision: `fp` or a quantizer.

  Raises:
    ValueError: the questions differ.
  """
  pairs = _paired(arm, default)
  return seeds.known_gap(
      *([stored.columns(own, precision) for own in side]
        for side in zip(*pairs)), resamples=pooled.RESAMPLES).record()


def more_lost(
    arm: pooled.Lines, default: pooled.Lines, precision: str
) -> dict[str, Any]:
  """Accuracy that an arm loses more than the default; as above."""
  lost = lambda own: 1 - stored.right(own, 'unlearned', precision)
  pairs = _paired(arm, default)
  return seeds.mean_difference(
      [lost(ours) - lost(theirs) for ours, theirs in pairs],
      [stored.facts(ours) for ours, _ in pairs], largest=1.0,
      resamples=pooled.RESAMPLES).record()


def _paired(
    arm: pooled.Lines, default: pooled.Lines
) -> list[tuple[list[stored.Line], list[stored.Line]]]:
  """The answers of each seed to the same questions in the same order."""
  name: Callable[[stored.Line], tuple[str, str]] = (
      lambda line: (line['split'], line['id']))
  pairs = []
  for own, other in zip(arm, default, strict=True):
    pair = sorted(own, key=name), sorted(other, key=name)
    ours, theirs = ([name(line) for line in lines] for lines in pair)
    if ours != theirs:
      raise ValueError(
          f'Two arms have {len(set(ours) ^ set(theirs))} questions that the'
          ' other lacks; wanted the same. Run both with the same sizes of the'
          ' evaluation and the same seed.')
    pairs.append(pair)
  return pairs
