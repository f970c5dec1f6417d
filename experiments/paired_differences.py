"""What a setting changes: finished runs against others, question by question.

    python experiments/paired_differences.py --of A0 A1 A2 --against B0 B1 B2

A0, B0 and so on are workdirs, paired by seed. Prints a Markdown table of A less
B: accuracy on the forget facts in new phrasings and on what is kept, in full
precision and under the first quantizer, and the gap between the two. Questions
of all seeds count together; facts are resampled, with all their questions, so
that two runs that miss the same questions differ by nothing. How much a run
varies from one training to the next is not in the intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from mansu_jax.statistics import statistics

_FORGOTTEN = ('forget_paraphrase', 'forget_far')
_KEPT = ('retain', 'retain_heldout')

Answer = dict[str, Any]


def read(folder: pathlib.Path) -> tuple[int, str, dict[Any, Answer]]:
  """Seed, first quantizer, and answers by split and id of a finished run."""
  config = json.loads((folder / 'record.json').read_text())['config']
  lines = (folder / 'answers.jsonl').read_text().splitlines()
  answers = {(a['split'], a['id']): a for a in map(json.loads, lines)}
  return config['seed'], config['quant_schemes'][0], answers


def right(answer: Answer, precision: str) -> float:
  """1 where the unlearned model gave the right answer."""
  return float(answer['models']['unlearned'][precision]['correct'])


def measures(scheme: str) -> dict[str, tuple[tuple[str, ...], Callable]]:
  """`{name: (splits, answer -> number)}`."""
  out = {}
  for name, splits in (('forgotten', _FORGOTTEN), ('kept', _KEPT)):
    for precision in ('fp', scheme):
      out[f'{name}, {precision}'] = (
          splits, lambda a, precision=precision: right(a, precision))
  out['gap'] = (_FORGOTTEN, lambda a: right(a, scheme) - right(a, 'fp'))
  return out


def differences(
    of: Sequence[pathlib.Path], against: Sequence[pathlib.Path]
) -> dict[str, statistics.Estimate]:
  """The difference in each measure, with its interval.

  Raises:
    ValueError: the seeds, quantizers or questions of the two sides differ, or
      a seed is there twice.
  """
  sides = [{seed: (scheme, answers) for seed, scheme, answers in map(
      read, folders)} for folders in (of, against)]
  seeds, schemes = ([{f(k, v) for k, v in side.items()} for side in sides]
                    for f in (lambda k, v: k, lambda k, v: v[0]))
  if seeds[0] != seeds[1] or schemes[0] != schemes[1] or len(schemes[0]) > 1:
    raise ValueError(
        f'The runs have the seeds {seeds[0]} and {seeds[1]} and the quantizers'
        f' {schemes[0]} and {schemes[1]}; wanted the same, and one quantizer.')
  for side, folders in zip(sides, (of, against)):
    if len(side) < len(folders):
      raise ValueError(
          f'{len(folders)} runs have the seeds {sorted(side)}; wanted one run a'
          ' seed on either side.')
  pairs = []
  for seed, (_, answers) in sides[1].items():
    others = sides[0][seed][1]
    if others.keys() != answers.keys():
      raise ValueError(
          f'Of seed {seed} {len(others.keys() ^ answers.keys())} questions were'
          ' asked on one side only; wanted the same on both: runs with the same'
          ' data and --eval_ flags.')
    pairs += [(others[key], other) for key, other in answers.items()]
  out = {}
  for name, (splits, value) in measures(*schemes[0]).items():
    chosen = [(a, b) for a, b in pairs if b['split'] in splits]
    out[name] = statistics.interval(
        np.array([value(a) - value(b) for a, b in chosen]),
        [b['fact'] for _, b in chosen], largest=2.0)
  return out


def main() -> None:
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
