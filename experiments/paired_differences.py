"""Compares finished runs of two settings, question by question.

    python experiments/paired_differences.py --of A0 A1 A2 --against B0 B1 B2

A0, B0 and so on are workdirs, paired by seed. Prints a Markdown table of A less
B: accuracy on the forget facts in new phrasings and on retained facts, in full
precision and under the first quantizer, and the gap between the two precisions.
All seeds count together. Intervals resample facts with all their questions, so
they do not cover the variation from one training run to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from mansu_jax.statistics import bootstrap
from mansu_jax.statistics import gaps

_FORGOTTEN = ('forget_paraphrase', 'forget_far')
_RETAINED = ('retain', 'retain_heldout')

Answer = dict[str, Any]


class Run(NamedTuple):
  """Answers of a finished run.

  Attributes:
    seed: Seed of the run.
    scheme: First quantizer.
    answers: Lines of answers.jsonl by split and id.
  """

  seed: int
  scheme: str
  answers: dict[tuple[str, str], Answer]


def read(folder: pathlib.Path) -> Run:
  """Reads a finished workdir."""
  config = json.loads((folder / 'record.json').read_text())['config']
  lines = (folder / 'answers.jsonl').read_text().splitlines()
  return Run(config['seed'], config['quant_schemes'][0], {
      (a['split'], a['id']): a for a in map(json.loads, lines)})


def _is_right(answer: Answer, precision: str) -> float:
  """1 if the unlearned model gave the right answer."""
  return float(answer['models']['unlearned'][precision]['correct'])


def measures(
    scheme: str
) -> dict[str, tuple[tuple[str, ...], Callable[[Answer], float]]]:
  """Splits and function of each measure by name."""
  out = {}
  for name, splits in (('forgotten', _FORGOTTEN), ('kept', _RETAINED)):
    for precision in ('fp', scheme):
      out[f'{name}, {precision}'] = (
          splits, lambda a, precision=precision: _is_right(a, precision))
  out['gap'] = (
      _FORGOTTEN, lambda a: _is_right(a, scheme) - _is_right(a, 'fp'))
  return out


def differences(
    of: Sequence[pathlib.Path], against: Sequence[pathlib.Path]
) -> dict[str, bootstrap.Estimate]:
  """Difference in each measure with its interval.

  Args:
    of: Workdirs of one setting.
    against: Workdirs of another setting with the same seeds.

  Returns:
    `of` less `against` by name of the measure.

  Raises:
    ValueError: Seeds, quantizers or questions of the two settings differ, or a
      seed occurs twice.
  """
  sides = [[read(folder) for folder in folders] for folders in (of, against)]
  scheme = _check_comparable(*sides)
  pairs = _pair_answers(*sides)
  out = {}
  for name, (splits, value) in measures(scheme).items():
    chosen = [(a, b) for a, b in pairs if b['split'] in splits]
    out[name] = gaps.mean_difference(
        np.array([value(a) - value(b) for a, b in chosen]),
        [b['fact'] for _, b in chosen], largest=2.0)
  return out


def _check_comparable(of: Sequence[Run], against: Sequence[Run]) -> str:
  """Checks seeds and quantizers; returns the quantizer."""
  seeds = [{run.seed for run in side} for side in (of, against)]
  schemes = [{run.scheme for run in side} for side in (of, against)]
  if seeds[0] != seeds[1] or schemes[0] != schemes[1] or len(schemes[0]) > 1:
    raise ValueError(
        f'The runs have the seeds {seeds[0]} and {seeds[1]} and the quantizers'
        f' {schemes[0]} and {schemes[1]}; wanted the same, and one quantizer.')
  for side in (of, against):
    if len(seeds[0]) < len(side):
      raise ValueError(
          f'{len(side)} runs have the seeds {sorted(seeds[0])}; wanted one run'
          ' per seed for each setting.')
  return of[0].scheme


def _pair_answers(
    of: Sequence[Run], against: Sequence[Run]) -> list[tuple[Answer, Answer]]:
  """Pairs of answers to the same question at the same seed."""
  by_seed = {run.seed: run.answers for run in of}
  pairs = []
  for seed, _, answers in against:
    others = by_seed[seed]
    if unpaired := others.keys() ^ answers.keys():
      raise ValueError(
          f'Seed {seed} has {len(unpaired)} questions in one setting only;'
          ' wanted the same questions in both: runs with the same data and'
          ' --eval_ flags.')
    pairs += [(others[key], answer) for key, answer in answers.items()]
  return pairs


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  for flag in ('--of', '--against'):
    parser.add_argument(flag, type=pathlib.Path, nargs='+', required=True)
  args = parser.parse_args()
  print('| measure | difference | interval | questions | facts |')
  print('|---|---:|---|---:|---:|')
  for name, found in differences(args.of, args.against).items():
    low, high = found.interval
    print(f'| {name} | {found.value:+.3f} | [{low:+.3f}, {high:+.3f}] |'
          f' {found.n} | {found.facts} |')


if __name__ == '__main__':
  main()
