"""Copy-back: which part of the edit, when undone, restores the answers?"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any

import jax
import numpy as np

from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.stages.judge import readability
from mansu_jax.statistics import intervals
from mansu_jax.statistics import resampling


def measure(
    reader: readability.Reader, circuit: graph.Circuit,
    randoms: Sequence[graph.Circuit], halves: Sequence[graph.Circuit],
    moved: Sequence[float], precisions: Sequence[str], *, resamples: int,
    seed: int) -> dict[str, Any]:
  """Copies theta_0 back on parts of the model and measures the answers.

  The parts are the circuit, its complement, random circuits of the same shape,
  and halves of the circuit. Halves tell parts apart even if the circuit holds
  the whole edit. `share` is the recovered part of the lost accuracy,
  (acc - acc_u) / (acc_0 - acc_u).

  Args:
    reader: asks the questions.
    circuit: C.
    randoms: random circuits.
    halves: the half of C with the highest attribution, then random halves with
      as many nodes in each layer; or empty.
    moved: each half's share of the circuit's moved weights.
    precisions: names of views.
    resamples: bootstrap resamples.
    seed: of the resamples.
  """
  base, unlearned = reader.params['base'], reader.params['unlearned']
  undone_on = lambda c: _copy(unlearned, base, c)
  confined = _equal(undone_on(circuit), base)
  names = [f'random_half_{i - 1}' if i else 'best_half'
           for i in range(len(halves))]
  out = {'confined': confined, 'by_precision': {},
         'best_half_less_random': {}, 'moved': dict(zip(names, moved))}
  facts = reader.questions.facts
  share = functools.partial(
      _share, _weights(facts, resamples, seed), np.unique(facts).size)
  for precision in precisions:
    answered = functools.partial(reader.answered_under, precision)
    acc = {name: reader.correct(reader.picks(name, precision))
           for name in reader.params}
    if confined:  # Undone on C, it is the base.
      acc |= {'circuit': acc['base'], 'rest': acc['unlearned']}
    else:
      acc |= {'circuit': answered(undone_on(circuit)),
              'rest': answered(_copy(base, unlearned, circuit))}
      acc |= {f'random_{i}': answered(undone_on(c))
              for i, c in enumerate(randoms)}
    acc |= {name: answered(undone_on(c))
            for name, c in zip(names, halves)}
    gained = {name: right * 1.0 - acc['unlearned']
              for name, right in acc.items()}
    lost = gained.pop('base')
    del gained['unlearned']
    out['by_precision'][precision] = {
        name: {'answered': float(right.mean())} | (
            share(gained[name], lost) if name in gained else {})
        for name, right in acc.items()}
    if halves:
      best, *others = (gained[name] for name in names)
      out['best_half_less_random'][precision] = share(
          best - np.mean(others, 0), lost) | {
              'as_much': sum(int(o.sum() >= best.sum()) for o in others)}
  return out


def _weights(facts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
  """Weights of the questions: even, then resampled by fact, [1 + draws, m]."""
  rng = np.random.default_rng(seed)
  return np.concatenate([
      np.full((1, facts.size), 1 / facts.size),
      resampling.weights(facts, resamples, rng)])


def _share(
    weights: np.ndarray, facts: int, gained: np.ndarray, lost: np.ndarray
) -> dict[str, Any]:
  """The recovered share of the lost accuracy, from differences [m]."""
  lost, back = weights @ lost, weights @ gained
  if (lost <= 0).any():
    return {'share': None, 'interval': [None, None]}
  values = back / lost
  return {'share': float(values[0]),
          'interval': intervals.interval(values[1:], facts)}


def _copy(
    to: types.Params, source: types.Params, circuit: graph.Circuit
) -> types.Params:
  """`to` with the circuit's weights of `source`; other leaves are shared."""
  index = param_mask.make_index(circuit)
  return param_mask.scatter(to, index, param_mask.gather(source, index))


@jax.jit
def _all_equal(first, second):
  return jax.tree.reduce(
      lambda a, b: a & b,
      jax.tree.map(lambda a, b: (a == b).all(), first, second))


def _equal(first: types.Params, second: types.Params) -> bool:
  return bool(_all_equal(first, second))
