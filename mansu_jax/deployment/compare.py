"""Compares the simulator's answers with those of a real engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from mansu_jax.deployment import items as items_lib
from mansu_jax.eval import accuracy
from mansu_jax.statistics import gaps

# Nats. Engines sum in different orders, which moves a score by up to about
# 1e-4. Choices whose scores are closer than this are a tie.
TIE = 1e-3


def compare_answers(
    items: items_lib.Items, simulated: items_lib.Answers,
    real: accuracy.Scores) -> dict[str, Any]:
  """Compares the answers to n items.

  Args:
    items: The questions.
    simulated: Answers of the simulator.
    real: Scores of the real engine.

  Returns:
    A JSON-able dictionary: `n`; `accuracy` {split: {n, simulated, real}};
    `differing`, the items on which the two choose differently;
    `max_margin_difference` and `mean_margin_difference` in nats; `difference`,
    real less simulated accuracy, with its interval by fact; `same_answers`,
    whether all differing items are ties; `zero_inside`, whether the interval
    contains 0.
  """
  answers = items_lib.Answers.from_scores(real)
  margin_difference = np.abs(simulated.margin - answers.margin)
  difference = gaps.quantization_gap(
      answers.correct, simulated.correct, [q.fact for q in items.questions])
  differing = [_describe_item(items, simulated, real, answers, i)
               for i in np.flatnonzero(simulated.choice != answers.choice)]
  low, high = difference.interval
  return {
      'n': len(items.questions),
      'accuracy': _accuracy_by_split(items, simulated, answers),
      'differing': differing,
      'max_margin_difference': float(margin_difference.max()),
      'mean_margin_difference': float(margin_difference.mean()),
      'difference': difference.record(),
      'same_answers': all(item['tie'] for item in differing),
      'zero_inside': bool(low <= 0 <= high)}


def _accuracy_by_split(
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


def _describe_item(
    items: items_lib.Items, simulated: items_lib.Answers,
    scores: accuracy.Scores, real: items_lib.Answers, i: int
) -> dict[str, Any]:
  """An item with different choices, and whether the choices are tied."""
  question = items.questions[i]
  chosen = int(simulated.choice[i]), int(real.choice[i])
  gap = float(scores.logprob[i, chosen[1]] - scores.logprob[i, chosen[0]])
  margins = float(simulated.margin[i]), float(real.margin[i])
  return {
      'split': items.splits[i], 'id': question.id,
      'simulated': question.choices[chosen[0]],
      'real': question.choices[chosen[1]],
      'simulated_margin': margins[0], 'real_margin': margins[1],
      'gap': gap,  # Nats between the two choices in the real engine.
      'tie': gap < TIE and abs(margins[0] - margins[1]) < TIE}
