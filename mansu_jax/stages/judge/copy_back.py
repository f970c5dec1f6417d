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
from mansu_jax.erasure import copy_back
from mansu_jax.stages.judge import readability


def measure(
    reader: readability.Reader, circuit: graph.Circuit,
    randoms: Sequence[graph.Circuit], halves: copy_back.Halves,
    precisions: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Any]:
  """Copies theta_0 back on parts of the model and measures the answers.

  The parts are the circuit, its complement, random circuits of the same shape,
  and halves of the circuit. Halves tell parts apart even if the circuit holds
  the whole edit. `share` is the recovered share of the lost accuracy.

  Args:
    reader: asks the questions.
    circuit: C.
    randoms: random circuits.
    halves: halves of C.
    precisions: names of views.
    resamples: number of bootstrap resamples.
    seed: seed of the resamples.
  """
  names = [f'random_half_{i - 1}' if i else 'best_half'
           for i in range(len(halves.circuits))]
  confined = _equal(_undo(reader, circuit), reader.params['base'])
  undone = {} if confined else {
      f'random_{i}': c for i, c in enumerate(randoms)}
  undone |= dict(zip(names, halves.circuits))
  out = {'confined': confined, 'by_precision': {},
         'best_half_less_random': {}, 'moved': dict(zip(names, halves.moved))}
  share = copy_back.RecoveredShare(
      reader.questions.facts, resamples=resamples, seed=seed)
  for precision in precisions:
    right = _answer(reader, precision, circuit, undone, confined)
    gained = {name: hits * 1.0 - right['unlearned']
              for name, hits in right.items()}
    lost = gained.pop('base')
    del gained['unlearned']
    out['by_precision'][precision] = {
        name: {'answered': float(hits.mean())} | (
            share(gained[name], lost) if name in gained else {})
        for name, hits in right.items()}
    if names:
      best, *others = (gained[name] for name in names)
      out['best_half_less_random'][precision] = share(
          best - np.mean(others, 0), lost) | {
              'as_much': sum(int(o.sum() >= best.sum()) for o in others)}
  return out


def _answer(
    reader: readability.Reader, precision: str, circuit: graph.Circuit,
    undone: dict[str, graph.Circuit], confined: bool) -> dict[str, np.ndarray]:
  """Whether each question is answered [m], by the restored part."""
  right = {name: reader.correct(reader.picks(name, precision))
           for name in reader.params}
  answered = functools.partial(reader.answered_under, precision)
  if confined:  # Undone on C, it is the base.
    right |= {'circuit': right['base'], 'rest': right['unlearned']}
  else:
    right |= {'circuit': answered(_undo(reader, circuit)),
              'rest': answered(_copy(
                  reader.params['base'], reader.params['unlearned'], circuit))}
  return right | {
      name: answered(_undo(reader, part)) for name, part in undone.items()}


def _undo(reader: readability.Reader, circuit: graph.Circuit) -> types.Params:
  """The unlearned model with theta_0 on a circuit."""
  return _copy(reader.params['unlearned'], reader.params['base'], circuit)


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
