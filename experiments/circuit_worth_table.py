"""Prints the results of `experiments.circuit_worth` as Markdown.

  python -m experiments.circuit_worth_table DIR

Table 1 has every arm when it stopped; random circuits as mean [least, most].

Table 2 has each arm minus the mean of its random circuits (of its own settings,
else of the attributed arm), including random circuits that did not reach the
target: differences by question, 95 % intervals by fact, and the number of
random circuits that the arm exceeds.

Table 3 has the arms with at least five random circuits. Its intervals resample
facts and circuits, so they hold for random circuits in general. It also counts
the random circuits that were as quick, and those that retain as much (retain
and held-out). With 19 random circuits, none of which does as well, p = 0.05.

Table 4 has the records of `experiments.relearning`, if any: CAD, readability,
and accuracy on facts that relearning did not teach. With at least five random
circuits, intervals resample circuits too.

Intervals exclude the variation from batch order, which all arms share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from mansu_jax.deployment import relearning_attack
from mansu_jax.statistics import accuracy
from mansu_jax.statistics import gaps
from mansu_jax.statistics import intervals

# Splits of retained questions; some ask about the forgotten facts' entities.
_KEPT = ('retain', 'retain_heldout')
_MEASURES = ('forgotten', 'retain', 'held-out', 'same entity')
_PRECISIONS = ('fp', 'nf4')
_NONE = '–'  # No such questions.
_ENOUGH = 5  # Random circuits to resample.
_RESAMPLES = 4000


def read(folder: pathlib.Path) -> dict[int, dict[str, Any]]:
  """`{seed: {'questions': ..., 'arms': {name: record}}}`."""
  out = {}
  for path in sorted(folder.glob('questions_s*.json')):
    seed = int(path.stem.removeprefix('questions_s'))
    arms = [json.loads(p.read_text()) for p in sorted(
        folder.glob(f'*_s{seed}.json'))
            if not p.name.startswith(('questions_', 'setting_'))]
    after = [json.loads(p.read_text()) for p in sorted(
        folder.glob(f'relearning/*_s{seed}.json'))]
    out[seed] = {'questions': json.loads(path.read_text()),
                 'arms': {arm['arm']: arm for arm in arms},
                 'relearning': {arm['arm']: arm for arm in after}}
  return out


def right(arm: dict[str, Any], precision: str) -> np.ndarray:
  """Whether each question was answered rightly, float [n]."""
  return np.array(list(arm['right'][precision]), float)


def setting(name: str) -> str:
  """The arm whose random circuit this is."""
  return name.rpartition('random:')[0].rstrip('+') or 'attributed'


def is_random(name: str) -> bool:
  return 'random:' in name


def _randoms(arms: dict[str, Any], name: str) -> list[dict[str, Any]]:
  """The random circuits of an arm's setting."""
  return [a for n, a in arms.items() if is_random(n) and setting(n) == name]


def _subject(question: Sequence[str]) -> str:
  """`france` of the fact `capital/france`."""
  return question[2].split('/', 1)[-1]


def _rows(questions: Sequence[Sequence[str]], measure: str) -> np.ndarray:
  """Mask of the questions of a measure."""
  forgotten = {_subject(q) for q in questions if q[0].startswith('forget')}
  belongs = {
      'forgotten': lambda q: q[0] in ('forget_paraphrase', 'forget_far'),
      'retain': lambda q: q[0] == 'retain',
      'held-out': lambda q: q[0] == 'retain_heldout',
      'same entity': lambda q: q[0] in _KEPT and _subject(q) in forgotten,
  }[measure]
  return np.array([belongs(q) for q in questions])


def _spread(values: Iterable[float], form: Callable[[float], str]) -> str:
  """A value, or the mean of several [least, most]."""
  values = list(values)
  text = form(np.mean(values))
  return text if len(values) == 1 else (
      f'{text} [{form(min(values))}, {form(max(values))}]')


def _grouped(arms: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
  """Arms by themselves, and the random circuits of a setting together."""
  groups: dict[str, list[Any]] = {}
  for name, arm in arms.items():
    key = f'{setting(name)}, random' if is_random(name) else name
    groups.setdefault(key, []).append(arm)
  return sorted(groups.items())


def _cells(arms: Sequence[dict[str, Any]], questions) -> list[str]:
  """The first table's cells of one arm, or of several together."""
  cells = [_spread((a['steps'] for a in arms), lambda x: f'{x:.0f}')]
  for measure in _MEASURES:
    rows = _rows(questions, measure)
    cells.append(_NONE if not rows.any() else ' / '.join(
        _spread((right(a, p)[rows].mean() for a in arms),
               lambda x: f'{x:.3f}') for p in _PRECISIONS))
  cells.append(' / '.join(
      _spread((a['perplexity'][p] for a in arms), lambda x: f'{x:.1f}')
      for p in _PRECISIONS))
  cells.append(_spread(
      (100 * a['moved'] for a in arms), lambda x: f'{x:.2f} %'))
  return cells


def as_stopped(found: dict[str, Any]) -> list[str]:
  """Rows of the first table."""
  rows = []
  for key, members in _grouped(found['arms']):
    missed = sum(not a['reached'] for a in members)
    note = f' ({missed} missed the target)' if missed else ''
    rows.append(' | '.join(
        [f'| {key}{note}', str(len(members)),
         *_cells(members, found['questions'])])
                + ' |')
  return rows


def less_random(found: dict[str, Any]) -> list[str]:
  """Rows of the second table."""
  arms, questions = found['arms'], found['questions']
  rows = []
  for name in sorted(n for n in arms if not is_random(n)):
    for against in (name, 'attributed'):
      if randoms := _randoms(arms, against):
        break
    if not randoms:
      continue
    missed = sum(not a['reached'] for a in randoms)
    note = f' ({missed} missed the target)' if missed else ''
    cells = [f'| {name}', f'{len(randoms)} of {against}{note}']
    for measure in _MEASURES:
      for precision in _PRECISIONS:
        cells.append(_difference(
            arms[name], randoms, questions, measure, precision))
    rows.append(' | '.join(cells) + ' |')
  return rows


def _difference(arm, randoms, questions, measure, precision) -> str:
  """Arm minus the mean of random ones, and how many of them it exceeds."""
  chosen = _rows(questions, measure)
  if not chosen.any():
    return _NONE
  facts = [q[2] for q, kept in zip(questions, chosen) if kept]
  own = right(arm, precision)[chosen]
  others = np.array([right(a, precision)[chosen] for a in randoms])
  found = gaps.mean_difference(own - others.mean(0), facts, largest=1.0)
  more = int((own.mean() > others.mean(1)).sum())
  low, high = found.interval
  return f'{found.value:+.3f} [{low:+.3f}, {high:+.3f}], {more}'


def over_circuits(
    own: np.ndarray, others: np.ndarray, facts: Sequence[str], *,
    level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
  """A circuit minus the mean of random ones, with its interval.

  Facts and random circuits are resampled independently; percentiles are widened
  for the smaller number of the two.

  Args:
    own: right answers of the circuit, [n].
    others: right answers of each random circuit, [circuits, n].
    facts: fact of each question, n.
    level: coverage.
    seed: seed of the resampling.
  """
  names, index = np.unique(np.asarray(facts), return_inverse=True)
  add_up = lambda values: np.bincount(index, values, minlength=len(names))
  sums = np.stack([add_up(own), *map(add_up, others)])  # [1 + circuits, facts]
  rng = np.random.default_rng(seed)
  draw = lambda count: rng.multinomial(
      count, np.full(count, 1 / count), size=_RESAMPLES)
  by_fact, by_circuit = draw(len(names)), draw(len(others)) / len(others)
  means = by_fact @ sums.T / (by_fact @ np.bincount(index))[:, None]
  found = means[:, 0] - (means[:, 1:] * by_circuit).sum(1)
  tail = intervals.expanded(
      (1 - level) / 2, min(len(names), len(others)))
  return (float(own.mean() - others.mean()),
          *map(float, np.quantile(found, (tail, 1 - tail))))


def less_many(found: dict[str, Any]) -> list[str]:
  """Rows of the third table: all random circuits, and those at the target."""
  rows = []
  for name, own in sorted(found['arms'].items()):
    if is_random(name):
      continue
    randoms = _randoms(found['arms'], name)
    reached = [a for a in randoms if a['reached']]
    for label, some in (
        (name, randoms), (f'{name}, those that reached the target', reached)):
      if len(some) >= _ENOUGH and (label == name or len(some) < len(randoms)):
        rows.append(f'| {label} | ' + ' | '.join(
            _against_many(own, some, found['questions'])) + ' |')
  return rows


def _against_many(own, randoms, questions) -> list[str]:
  """The third table's cells of an arm and some random circuits."""
  at_least = lambda value: str(sum(value(a) >= value(own) for a in randoms))
  kept_rows = _rows(questions, 'retain') | _rows(questions, 'held-out')
  cells = [str(len(randoms)), str(sum(
      a['reached'] and a['steps'] <= own['steps'] for a in randoms))]
  cells += [at_least(lambda a, p=p: right(a, p)[kept_rows].mean())
            for p in _PRECISIONS]
  for measure in _MEASURES:
    chosen = _rows(questions, measure)
    facts = [q[2] for q, is_kept in zip(questions, chosen) if is_kept]
    cells += [_less(right(own, p)[chosen], np.array(
        [right(a, p)[chosen] for a in randoms]), facts) if facts else _NONE
              for p in _PRECISIONS]
  cells += [at_least(lambda a, p=p: -a['perplexity'][p]) for p in _PRECISIONS]
  return [*cells, at_least(lambda a: -a['moved'])]


def relearned(found: dict[str, Any], seed: int) -> list[str]:
  """Rows of the fourth table."""
  number, rows = '{:.3f}'.format, []
  facts = [q[2] for q in found['questions'] if q[0] == 'forget_far']
  known = relearning_attack.choose_taught_facts(facts, seed)
  asked = np.array([fact not in known for fact in facts])
  facts = [fact for fact, new in zip(facts, asked) if new]
  tell = lambda found: '{:.3f} [{:.3f}, {:.3f}]'.format(
      found.value, *found.interval)
  answers = lambda arm, i: np.array(
      list(arm['relearning'][i]['right']), float)[asked]
  for key, members in _grouped(found['relearning']):
    cells = [f'| {key}', str(len(members))]
    for which in ('own', 'attributed'):
      values = [m['cad'][which]['value'] for m in members if which in m['cad']]
      cells.append(_spread(values, number) if values else '')
    cells.append(_spread((m['readability']['value'] for m in members), number))
    for i, _ in enumerate(members[0]['relearning']):
      right_at = [answers(m, i) for m in members]
      cells.append(
          tell(accuracy.accuracy_with_interval(right_at[0], facts))
          if len(members) == 1 else _spread(
              (right.mean() for right in right_at), number))
    rows.append(' | '.join(cells) + ' |')
  arms = found['relearning']
  for name in sorted(n for n in arms if not is_random(n)):
    if randoms := _randoms(arms, name):
      rows.append(' | '.join([f'| {name}, less random', str(len(randoms)), '',
                              '', '', *(
          _less(answers(arms[name], i),
                np.array([answers(a, i) for a in randoms]), facts)
          for i, _ in enumerate(arms[name]['relearning']))]) + ' |')
  return rows


def _less(own: np.ndarray, others: np.ndarray, facts: Sequence[str]) -> str:
  """A circuit minus random ones, which are resampled if there are enough."""
  if len(others) >= _ENOUGH:
    found = over_circuits(own, others, facts)
  else:
    one = gaps.mean_difference(own - others.mean(0), facts, largest=1.0)
    found = one.value, *one.interval
  return '{:+.3f} [{:+.3f}, {:+.3f}]'.format(*found)


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('folder', type=pathlib.Path)
  for seed, found in read(parser.parse_args().folder).items():
    names = ['arm', 'circuits', 'steps', *_MEASURES, 'perplexity', 'moved']
    print(f'Seed {seed}, fp / NF4:\n\n| {" | ".join(names)} |')
    print('|---' * len(names) + '|')
    print('\n'.join(as_stopped(found)))
    names = ['arm', 'random circuits'] + [
        f'{m}, {p}' for m in _MEASURES for p in ('fp', 'NF4')]
    print(f'\nLess random circuits, and how many of them it exceeds:\n\n'
          f'| {" | ".join(names)} |')
    print('|---' * len(names) + '|')
    print('\n'.join(less_random(found)) + '\n')
    if many := less_many(found):
      names = ['arm', 'random circuits', 'as quick', 'keep as much, fp', 'NF4'
               ] + [f'{m}, {p}' for m in _MEASURES for p in ('fp', 'NF4')] + [
                   'perplexity as low, fp', 'NF4', 'moves as little']
      print(f'Circuits resampled as well:\n\n| {" | ".join(names)} |')
      print('|---' * len(names) + '|')
      print('\n'.join(many) + '\n')
    if found['relearning']:
      steps = [x['step'] for x in next(iter(
          found['relearning'].values()))['relearning']]
      names = ['arm', 'circuits', 'CAD', 'on the attributed', 'readability', *(
          f'not taught, step {step}' for step in steps)]
      print(f'| {" | ".join(names)} |')
      print('|---' * len(names) + '|')
      print('\n'.join(relearned(found, seed)) + '\n')


if __name__ == '__main__':
  main()
