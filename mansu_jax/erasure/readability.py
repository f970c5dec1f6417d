"""Readability: how much of what the base holds can still be read inside.

With acc_l the share of forgotten questions that a lens on layer l answers (see
`lens`), and g what the best layer reaches by guessing:

  readability = (max_l acc_l(unlearned) - g) / (max_l acc_l(base) - g)

1 is all that the base has, 0 nothing. `hidden` is the best layer's share less
that of the last, whose state is what the model says, or less g where that is
more: knowledge that is there and does not come out. `avoided` is the least
layer's: below what guessing gives, right answers are avoided, which tells them
as well. The best and the least layer are chosen once, and held where facts are
resampled: the best of each draw is biased.

Guessing is what states say of other facts' questions: facts change places, each
with all its questions, so that phrasings of one fact are wrong together, and
answers that are likely whatever is asked are as likely there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
from typing import Any

import numpy as np

from mansu_jax.erasure import resampling


class NothingToRead(ValueError):
  """The base itself holds no more than guessing gives."""


def picks(scores: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """The choices that are preferred, [L + 1, m] int.

  Args:
    scores: [L + 1, m, U] logits of every token asked for.
    choices: [m, C] int, which of the tokens each question's choices are.
  """
  return np.take_along_axis(scores, choices[None], 2).argmax(2)


def guesses(
    scores: np.ndarray, choices: np.ndarray, right: np.ndarray,
    facts: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
  """How many questions the states of other facts' questions answer.

  Args:
    scores: as in `picks`.
    choices: as there.
    right: [m] int, column of the right choice.
    facts: [m], of each question; two at least.
    draws: how often facts change places.
    seed: of the draws.

  Returns:
    Share answered by each layer, [draws, L + 1].
  """
  rng, (unique, fact) = np.random.default_rng(seed), np.unique(
      facts, return_inverse=True)
  rows = [np.flatnonzero(fact == i) for i in range(unique.size)]
  rank = np.zeros(fact.size, int)  # Of a question among its fact's.
  for members in rows:
    rank[members] = np.arange(members.size)
  shares = []
  for _ in range(draws):
    order = rng.permutation(unique.size)
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # No fact is left in its place.
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
    base: the choice that each layer of the base prefers, [L + 1, m] int.
    unlearned: that of the unlearned model's.
    beside: those of models that give nulls of one value, by name.
    right: [m] int, the right choice.
    facts: [m], what is resampled.
    guessed: `guesses` of the unlearned model, [draws, L + 1].
    resamples: bootstrap draws, and halvings.
    seed: of all draws.

  Returns:
    `value`, `interval` (95 %), `hidden` (with the 95 % level of guessing),
    `avoided` (the least layer's share, with the 5 % level), `by_layer` of all
    models, and `nulls`: `guessing` (mean, 95 % level), `prompt_halves` (mean,
    5 % level: of the base on two halves of the facts), and each of `beside`
    (value, and the paired interval of value minus it). `passed`: what is read
    is not told from guessing, from above or below, and is less than all of
    `beside` read.

  Raises:
    NothingToRead: no layer of the base reads more than guessing gives, of which
      readability would be a share.
  """
  rng = np.random.default_rng(seed)
  chosen = {'base': base, 'unlearned': unlearned, **beside}
  hits = {name: np.equal(x, right) for name, x in chosen.items()}  # [L + 1, m]
  best = {name: int(hit.mean(1).argmax()) for name, hit in hits.items()}
  most = guessed.max(1)
  floor, level = float(most.mean()), float(
      np.quantile(most, resampling.LEVEL))
  held = float(hits['base'].mean(1).max())
  if held <= level:
    raise NothingToRead(
        f'the best layer of the base answers {held:.2f} of the'
        f' {right.size} questions, and guessing up to {level:.2f} (95 % level);'
        ' wanted more, of what readability is a share')
  weights = np.stack([resampling.weights(facts, rng) for _ in range(resamples)])
  uniform = np.full((1, right.size), 1 / right.size)

  def share(name, weights):
    read = lambda name: weights @ hits[name][best[name]] - floor
    return read(name) / read('base')

  draws = share('unlearned', weights)
  count = np.unique(facts).size
  interval = functools.partial(resampling.interval, groups=count)
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
  """Whether nothing is to be read: `passed`, and the `checks` behind it."""
  nulls, avoided = found['nulls'], found['avoided']
  low, high = avoided['interval']
  checks = {
      'within_guessing': resampling.within(
          found, nulls['guessing']['level_95']),
      'not_avoided': resampling.within(
          {'value': -avoided['value'], 'interval': [-high, -low]},
          -avoided['guessing_level_5']),
      'below_prompt_halves': bool(
          found['value'] < nulls['prompt_halves']['level_5'])}
  for name, null in nulls.items():
    if 'difference_interval' in null:
      checks[f'below_{name}'] = resampling.below(null['difference_interval'])
  return {'checks': checks, 'passed': resampling.all_of(checks.values())}


def _avoided(
    hits: np.ndarray, weights: np.ndarray, guesses: np.ndarray,
    interval: Callable[[np.ndarray], list[float]]) -> dict[str, Any]:
  """The layer that answers the least."""
  by_layer = hits.mean(1)
  least = int(by_layer.argmin())
  return {'value': float(by_layer[least]),
          'interval': interval(weights @ hits[least]),
          'guessing_level_5': float(np.quantile(
              guesses.min(1), 1 - resampling.LEVEL)),
          'layer': least}


def _hidden(
    hits: np.ndarray, weights: np.ndarray, guesses: np.ndarray,
    interval: Callable[[np.ndarray], list[float]]) -> dict[str, Any]:
  """The best layer less the last, or less guessing where that is more."""
  by_layer, floor = hits.mean(1), guesses.max(1).mean()
  best = int(by_layer.argmax())
  less = lambda read, said: read - np.maximum(said, floor)
  return {'value': float(less(by_layer[best], by_layer[-1])),
          'interval': interval(less(
              weights @ hits[best], weights @ hits[-1])),
          'guessing_level_95': float(np.quantile(less(
              guesses.max(1), guesses[:, -1]), resampling.LEVEL)),
          'layer': best}


def _halves(hits, facts, floor, draws, rng) -> dict[str, Any]:
  """A layer of the base on one half of the facts over it on the other."""
  sides = [resampling.halves(facts, rng) for _ in range(draws)]
  read = lambda weights: hits @ weights - floor
  values = [read(one) / read(other) for one, other in sides]
  return {'mean': float(np.mean(values)), 'draws': draws,
          'level_5': float(np.quantile(values, 1 - resampling.LEVEL))}
