"""Simulator and real engine, item by item and as accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.deployment import items as items_lib
from mansu_jax.eval import accuracy
from mansu_jax.statistics import statistics

# Nats. Engines sum in other orders, which moves a score by up to 1e-4 or so:
# choices that are nearer to each other than this are a tie.
TIE = 1e-3


def side_by_side(
    items: items_lib.Items, simulated: items_lib.Answers,
    real: accuracy.Scores) -> dict[str, Any]:
  """Compares the answers to n items; JSON-able.

  Args:
    items: the questions.
    simulated: the simulator's answers.
    real: the real engine's scores.

  Returns:
    `n`; `accuracy` {split: {n, simulated, real}}; `differing`, the items with
    another choice; `max_margin_difference` and `mean_margin_difference` in
    nats; `difference`, of accuracy, real less simulated, with its interval by
    fact; `same_answers`, whether no item but ties has another choice;
    `zero_inside`, whether the interval holds 0.
  """
  answers = items_lib.of_scores(real)
  apart = np.abs(simulated.margin - answers.margin)
  found = statistics.quantization_gap(
      answers.correct, simulated.correct, [q.fact for q in items.questions])
  differing = [_item(items, simulated, real, answers, i)
               for i in np.flatnonzero(simulated.choice != answers.choice)]
  low, high = found.interval
  return {
      'n': len(items.questions),
      'accuracy': _by_split(items, simulated, answers),
      'differing': differing,
      'max_margin_difference': float(apart.max()),
      'mean_margin_difference': float(apart.mean()),
      'difference': found.record(),
      'same_answers': all(item['tie'] for item in differing),
      'zero_inside': bool(low <= 0 <= high)}


def _by_split(
    items: items_lib.Items, simulated: items_lib.Answers,
    real: items_lib.Answers) -> dict[str, dict[str, Any]]:
  splits = np.array(items.splits)
  out = {}
  for split in dict.fromkeys(items.splits):
    rows = splits == split
    out[split] = {'n': int(rows.sum()),
                  'simulated': float(simulated.correct[rows].mean()),
                  'real': float(real.correct[rows].mean())}
  return out


def _item(
    items: items_lib.Items, simulated: items_lib.Answers,
    scores: accuracy.Scores, real: items_lib.Answers, i: int
) -> dict[str, Any]:
  """An item with another choice, and whether the two are as likely."""
  question = items.questions[i]
  chosen = int(simulated.choice[i]), int(real.choice[i])
  gap = float(scores.logprob[i, chosen[1]] - scores.logprob[i, chosen[0]])
  margins = float(simulated.margin[i]), float(real.margin[i])
  return {
      'split': items.splits[i], 'id': question.id,
      'simulated': question.choices[chosen[0]],
      'real': question.choices[chosen[1]],
      'simulated_margin': margins[0], 'real_margin': margins[1],
      'gap': gap,  # Of the two choices, in the real engine's nats.
      'tie': gap < TIE and abs(margins[0] - margins[1]) < TIE}
