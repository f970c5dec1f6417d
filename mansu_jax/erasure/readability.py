"""Readability: the share of the base's knowledge that a lens can still read.

With acc_l the share of forgotten questions that a lens on layer l answers (see
`lens`), and g the share that the best layer reaches by guessing:

  readability = (max_l acc_l(unlearned) - g) / (max_l acc_l(base) - g)

1 is all knowledge of the base, 0 none of it. `hidden` is the best layer's share
less the last layer's, which gives the model's answer, or less g if g is larger:
knowledge inside the model that its answers do not show. `avoided` is the share
of the worst layer: below guessing, the model avoids right answers, and so
reveals them. The best and the worst layer are fixed before facts are resampled,
because the best layer of each draw is biased.

For guessing, a lens reads the states of one fact to answer the questions of
another. Facts swap with all their questions, so the phrasings of one fact are
wrong together, and answers that are likely for any question stay as likely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
from typing import Any

import numpy as np

from mansu_jax.statistics import intervals
from mansu_jax.statistics import resampling
from mansu_jax.statistics import verdict


class NothingToRead(ValueError):
  """The lens reads no more from the base than guessing gives."""


def picks(scores: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """The preferred choice of each question at each layer, [L + 1, m] int.

  Args:
    scores: logits of the U choice tokens, [L + 1, m, U].
    choices: positions of each question's choices among these, [m, C] int.
  """
  return np.take_along_axis(scores, choices[None], 2).argmax(2)


def guesses(
    scores: np.ndarray, choices: np.ndarray, right: np.ndarray,
    facts: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
  """The share of questions that the states of other facts' questions answer.

  Args:
    scores: as for `picks`.
    choices: as for `picks`.
    right: column of the right choice, [m] int.
    facts: fact of each question, [m]; at least two facts.
    draws: number of random swaps of facts.
    seed: seed of the swaps.

  Returns:
    Share of right answers of each layer, [draws, L + 1].
  """
  rng, (unique, fact) = np.random.default_rng(seed), np.unique(
      facts, return_inverse=True)
  rows = [np.flatnonzero(fact == i) for i in range(unique.size)]
  rank = np.zeros(fact.size, int)  # Position among the fact's questions.
  for members in rows:
    rank[members] = np.arange(members.size)
  shares = []
  for _ in range(draws):
    order = rng.permutation(unique.size)
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # No fact keeps its place.
    state = np.array([rows[i][k % rows[i].size]
                      for i, k in zip(other[fact], rank)])
    shares.append(np.equal(picks(scores[:, state], choices), right).mean(1))
  return np.array(shares)


def measure(
    base: np.ndarray, unlearned: np.ndarray, beside: Mapping[str, np.ndarray],
    right: np.ndarray, facts: np.ndarray, guessed: np.ndarray, *,
    resamples: int, seed: int) -> dict[str, Any]:
  """Readability with its interval and nulls.

  Args:
    base: choice preferred at each layer of the base, [L + 1, m] int.
    unlearned: the same of the unlearned model.
    beside: the same of models that give a null of one value, by name.
    right: the right choice, [m] int.
    facts: fact of each question, [m]; facts are resampled.
    guessed: `guesses` of the unlearned model, [draws, L + 1].
    resamples: number of bootstrap draws, and of random halvings.
    seed: seed of all draws.

  Returns:
    `value`, `interval` (95 %), `hidden` (with the 95 % level of guessing),
    `avoided` (share of the worst layer, with the 5 % level), `by_layer` of all
    models, and `nulls`: `guessing` (mean, 95 % level), `prompt_halves` (mean,
    5 % level: the base on two halves of the facts), and one for each model of
    `beside` (value, and the paired interval of the difference). `passed` and
    `checks` as from `judge`.

  Raises:
    NothingToRead: no layer of the base reads more than guessing gives, so the
      denominator is 0.
  """
  rng = np.random.default_rng(seed)
  chosen = {'base': base, 'unlearned': unlearned, **beside}
  hits = {name: np.equal(x, right) for name, x in chosen.items()}  # [L + 1, m]
  best = {name: int(hit.mean(1).argmax()) for name, hit in hits.items()}
  most = guessed.max(1)
  floor, level = float(most.mean()), float(
      np.quantile(most, intervals.LEVEL))
  held = float(hits['base'].mean(1).max())
  if held <= level:
    raise NothingToRead(
        f'the best layer of the base answers {held:.2f} of the'
        f' {right.size} questions; wanted more than guessing reaches,'
        f' {level:.2f} (95 % level)')
  weights = resampling.weights(facts, resamples, rng)
  uniform = np.full((1, right.size), 1 / right.size)

  def share(name, weights):
    read = lambda name: weights @ hits[name][best[name]] - floor
    return read(name) / read('base')

  draws = share('unlearned', weights)
  count = np.unique(facts).size
  interval = functools.partial(intervals.interval, count=count)
  nulls = {
      'guessing': {'mean': 0.0, 'draws': len(guessed), 'level_95': (
          level - floor) / (held - floor)},
      'prompt_halves': _halves(
          hits['base'][best['base']], facts, floor, resamples, rng)}
  for name in beside:
    nulls[name] = {
        'value': float(share(name, uniform)[0]),
        'difference_interval': interval(draws - share(name, weights))}
  out = {
      'value': float(share('unlearned', uniform)[0]),
      'interval': interval(draws),
      'hidden': _hidden(hits['unlearned'], weights, guessed, interval),
      'avoided': _avoided(hits['unlearned'], weights, guessed, interval),
      'questions': int(right.size), 'facts': int(count),
      'by_layer': {name: hit.mean(1).tolist() for name, hit in hits.items()},
      'nulls': nulls}
  return out | judge(out)


def judge(found: dict[str, Any]) -> dict[str, Any]:
  """Whether nothing can be read: `passed`, and the `checks` behind it.

  `passed`: the share read does not differ from guessing, above or below, and is
  less than the share read from every model of `beside`.

  Args:
    found: from `measure`.
  """
  nulls, avoided = found['nulls'], found['avoided']
  checks = {
      'within_guessing': verdict.within(
          found, nulls['guessing']['level_95']),
      'not_avoided': verdict.beyond(avoided, avoided['guessing_level_5']),
      'below_prompt_halves': bool(
          found['value'] < nulls['prompt_halves']['level_5'])}
  for name, null in nulls.items():
    if 'difference_interval' in null:
      checks[f'below_{name}'] = verdict.below(null['difference_interval'])
  return {'checks': checks, 'passed': verdict.all_of(checks.values())}


def _avoided(
    hits: np.ndarray, weights: np.ndarray, guesses: np.ndarray,
    interval: Callable[[np.ndarray], list[float]]) -> dict[str, Any]:
  """The layer with the fewest right answers."""
  by_layer = hits.mean(1)
  least = int(by_layer.argmin())
  return {'value': float(by_layer[least]),
          'interval': interval(weights @ hits[least]),
          'guessing_level_5': float(np.quantile(
              guesses.min(1), 1 - intervals.LEVEL)),
          'layer': least}


def _hidden(
    hits: np.ndarray, weights: np.ndarray, guesses: np.ndarray,
    interval: Callable[[np.ndarray], list[float]]) -> dict[str, Any]:
  """The best layer less the last layer, or less guessing if that is more."""
  by_layer, floor = hits.mean(1), guesses.max(1).mean()
  best = int(by_layer.argmax())
  less = lambda best, last: best - np.maximum(last, floor)
  return {'value': float(less(by_layer[best], by_layer[-1])),
          'interval': interval(less(
              weights @ hits[best], weights @ hits[-1])),
          'guessing_level_95': float(np.quantile(less(
              guesses.max(1), guesses[:, -1]), intervals.LEVEL)),
          'layer': best}


def _halves(hits, facts, floor, draws, rng) -> dict[str, Any]:
  """The ratio of one layer of the base on two halves of the facts."""
  sides = [resampling.halves(facts, rng) for _ in range(draws)]
  read = lambda weights: hits @ weights - floor
  values = [read(one) / read(other) for one, other in sides]
  return {'mean': float(np.mean(values)), 'draws': draws,
          'level_5': float(np.quantile(values, 1 - intervals.LEVEL))}
