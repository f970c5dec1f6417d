"""How the runs of two methods differ, question by question.

Runs are paired by seed, and their answers by question. Intervals are over facts
with all their questions, and over seeds. P-values are over facts alone, so a
difference is larger than chance only where its interval excludes 0, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from mansu_jax.statistics import paired
from mansu_jax.statistics import seeds as seeds_lib

# Name of a measure -> splits of its questions.
_SPLITS = {
    'forgotten': ('forget_paraphrase', 'forget_far'),
    'forgotten, unseen choices': ('forget_unseen',),
    'held out': ('retain_heldout',)}

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The answers of a finished run.

  Attributes:
    seed: its seed.
    schemes: its quantizers.
    answers: lines of `answers.jsonl` by split and id.
  """

  seed: int
  schemes: tuple[str, ...]
  answers: Mapping[tuple[str, str], Answer]


@dataclasses.dataclass(frozen=True)
class Difference:
  """A share of right answers, less that of another method.

  Attributes:
    estimate: the difference with its interval over facts and seeds.
    p_value: two-sided, of all seeds together, by `paired.sign_flip_p`.
  """

  estimate: seeds_lib.OverSeeds
  p_value: float


def read(folder: pathlib.Path) -> Run:
  """Reads a finished workdir."""
  config = json.loads((folder / 'record.json').read_text('utf-8'))['config']
  with (folder / 'answers.jsonl').open(encoding='utf-8') as lines:
    return Run(
        seed=config['seed'], schemes=tuple(config['quant_schemes']),
        answers={(a['split'], a['id']): a for a in map(json.loads, lines)})


def between(
    of: Sequence[Run], against: Sequence[Run]) -> dict[str, Difference]:
  """Differences of two methods, by measure and precision.

  A measure is the share of questions answered right: forgotten ones in new
  phrasings, the same with unseen choices, and held-out ones. A measure without
  questions is left out. The last entries are the gaps, quantized less full
  precision, of the first measure.

  Args:
    of: runs of one method.
    against: runs of another method with the same seeds.

  Returns:
    `of` less `against`, by names such as `forgotten, nf4`.

  Raises:
    ValueError: seeds, quantizers or questions of the methods differ, or a seed
      occurs twice.
  """
  schemes = _check_comparable(of, against)
  by_seed, out = _pairs(of, against), {}
  right = lambda answer, precision: float(
      answer['models']['unlearned'][precision]['correct'])
  values = {
      f'{name}, {precision}': (splits, 1.0, lambda a, p=precision: right(a, p))
      for name, splits in _SPLITS.items() for precision in ('fp', *schemes)}
  values |= {f'gap, {scheme}': (
      _SPLITS['forgotten'], 2.0,
      lambda a, s=scheme: right(a, s) - right(a, 'fp')) for scheme in schemes}
  for name, (splits, largest, value) in values.items():
    chosen = [[(a, b) for a, b in pairs if b['split'] in splits]
              for pairs in by_seed]
    if all(chosen):
      found = [[value(a) - value(b) for a, b in pairs] for pairs in chosen]
      facts = [[b['fact'] for _, b in pairs] for pairs in chosen]
      out[name] = Difference(
          seeds_lib.mean_difference(found, facts, largest=largest),
          paired.sign_flip_p(
              np.concatenate(found), [*itertools.chain(*facts)]))
  return out


def adjusted(
    found: Mapping[str, Mapping[str, Difference]]
) -> dict[str, dict[str, float]]:
  """P-values by Holm, of each measure over all methods.

  Args:
    found: differences of each method, by measure.

  Returns:
    `{method: {measure: p}}`.
  """
  out: dict[str, dict[str, float]] = {method: {} for method in found}
  for measure in dict.fromkeys(m for of in found.values() for m in of):
    for method, p in paired.holm({
        method: of[measure].p_value for method, of in found.items()
        if measure in of}).items():
      out[method][measure] = p
  return out


def _check_comparable(
    of: Sequence[Run], against: Sequence[Run]) -> tuple[str, ...]:
  """Checks seeds and quantizers; returns the quantizers."""
  seeds = [sorted(run.seed for run in side) for side in (of, against)]
  schemes = {run.schemes for run in (*of, *against)}
  if seeds[0] != seeds[1] or len(set(seeds[0])) < len(of) or len(schemes) != 1:
    raise ValueError(
        f'The runs have the seeds {seeds[0]} and {seeds[1]} and the quantizers'
        f' {sorted(schemes)}; wanted one run for each of the same seeds, and'
        ' the same quantizers.')
  return of[0].schemes


def _pairs(
    of: Sequence[Run], against: Sequence[Run]
) -> list[list[tuple[Answer, Answer]]]:
  """Pairs of answers to the same question, of each seed."""
  by_seed = {run.seed: run.answers for run in of}
  pairs = []
  for run in against:
    others = by_seed[run.seed]
    if unpaired := others.keys() ^ run.answers.keys():
      raise ValueError(
          f'Seed {run.seed} has {len(unpaired)} questions in one method only;'
          ' wanted the same questions in both. Give all methods the same data'
          ' and --eval_ flags.')
    pairs.append(
        [(others[key], answer) for key, answer in run.answers.items()])
  return pairs
