"""The hidden share: answers that an edited model holds and does not look for.

An edit that stops a model from answering may have erased the knowledge or cut
it off. With l the mover layer (see `mover_layer`), four readings put a part of the
base and the edited model together:

- `routed`: the edited model, but block l attends as in the base. States, values,
  outputs and all other blocks are its own.
- `read_out`: as `routed`, but the blocks above l and the head are the base's.
- `values`: the base, but the values that the attention of block l brings from
  the span to the last token come from the edited model's states before block l.
- `last_state`: the edited model's last-token state after block l, with the
  base's blocks above it and the base's states at the earlier tokens.

Each is a share of the base's own lead, (answered - floor) / (answered by the
base - floor), where the floor is what is answered with the states of another
fact put in alike; in `read_out`, with another fact's last-token state, since
the base's blocks above l may still read the subject. `routed` finds answers
that block l does not look for, `read_out` those that are suppressed above it.
The hidden share H of each is less the edited model's own share where that is
above 0, and the higher one counts. The floor of the own share is what the base
answers when all states of the span are those of another fact.

H is 0 for the base, 1 for a model that looks away from all, and about 0 for one
that never knew the facts. The other two readings describe: the base reads the
states with its own block l, which may add what they lack. Knowledge may also
lie where no reading looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.erasure import spans
from mansu_jax.erasure import transplant
from mansu_jax.models import config as model_config
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding
from mansu_jax.statistics import intervals
from mansu_jax.statistics import resampling
from mansu_jax.statistics import verdict

JUDGED = ('routed', 'read_out')
READINGS = (*JUDGED, 'values', 'last_state')
LARGEST = 0.2  # A hidden share above this shows that the edit hides.
HARMLESS = 0.9  # Least share that a harmless change leaves.

Answers = Mapping[str, np.ndarray]  # Whether each question is answered, [n].


class Host:
  """A base that answers with states of other models.

  It keeps its states before the layer, [n, W, D] in float32, in host memory.

  Attributes:
    questions: the questions.
    own: whether the base itself answers each question, [n].
    ignorance: share of K other facts that leave the answer when their states
      before the layer replace those of the span, [n].
    elsewhere: share of K other facts in whose prompts it gives the answer, [n].
    others: `{reading: share}` of K other facts whose states, put in like an
      edited model's, leave the answer, [n].
  """

  def __init__(
      self, config: model_config.ModelConfig, base: types.Params,
      questions: spans.Questions, layer: int):
    """Runs the base on the questions and on those of other facts.

    Args:
      config: the models' config.
      base: full params of the base.
      questions: the questions.
      layer: the mover layer.
    """
    self._config, self._base, self._layer = config, base, layer
    self.questions = questions
    self._batches = spans.batches_of(questions)
    self._before: list[np.ndarray] = []
    found = self._collect(self._start)
    self.own = found.pop('own')
    mean = lambda name: np.mean([found[f'{name}_{k}'] for k in range(
        questions.others.shape[1])], axis=0)
    self.ignorance, self.elsewhere = mean('replaced'), mean('final')
    self.others = {name: mean(name) for name in READINGS}

  def answers(self, params: types.Params) -> Answers:
    """Whether the questions are answered, `own` and by each reading.

    Args:
      params: full params of an edited model.
    """
    before = iter(self._before)

    def one(batch):
      states, own = self._run(params, batch), next(before)
      read = self._answer(own, states, batch, params)
      del read['final']  # Read by the base's head; `own` by the model's.
      return read | {'own': states.picks}

    return self._collect(one)

  def _start(self, batch: spans.Batch) -> dict[str, types.Array]:
    """Runs the base, and puts states of other rows in it."""
    states = self._run(self._base, batch)
    self._before.append(sharding.to_host(states.before))
    out = {'own': states.picks}
    for k, source in enumerate(batch.others):
      read = self._answer(states.before, states, batch, self._base, source)
      read['replaced'] = transplant.replaced(
          self._config, self._base, states.before, source, batch.rows,
          layer=self._layer)
      # The blocks above the layer may still read the subject's tokens.
      read['read_out'] = read['last_state']
      out |= {f'{name}_{k}': picks for name, picks in read.items()}
    return out

  def _run(self, params, batch) -> transplant.States:
    return transplant.run(
        self._config, params, batch.rows, layer=self._layer)

  def _answer(self, before, states, batch, params, source=None):
    """Picks by each reading, and of the base by the final state."""
    if source is None:
      source = np.arange(len(batch.rows.tokens), dtype=np.int32)
    read = transplant.answer(
        self._config, self._base, before, states, source, batch.rows,
        layer=self._layer)
    routed = transplant.routed(
        self._config, self._base, before, params, states.before, source,
        batch.rows, layer=self._layer)
    found = {name: read[:, i] for i, name in enumerate(
        ('values', 'last_state', 'final'))}
    return found | {name: routed[:, i] for i, name in enumerate(JUDGED)}

  def _collect(
      self, run: Callable[[spans.Batch], dict[str, types.Array]]
  ) -> dict[str, np.ndarray]:
    """Whether the picks of all batches are right, by name, [n]."""
    parts: dict[str, list[np.ndarray]] = {}
    for batch in progress.track(self._batches, 'hidden share'):
      progress.count_tokens(int(batch.rows.lengths.sum()))
      right = self.questions.asked.right[batch.members]
      for name, picks in sharding.to_host(run(batch)).items():
        parts.setdefault(name, []).append(
            np.equal(picks[:len(right)], right) * 1.0)
    return {name: np.concatenate(part) for name, part in parts.items()}


class Shares:
  """Shares of a base's lead over ignorance, with intervals by fact.

  Args:
    facts: fact of each question, [n].
    base: whether the base answers, [n].
    ignorance: what an ignorant base answers, [n].
    floors: what the base answers with the states of another fact by each of
      `READINGS`, [n]; None: `ignorance` for each.
    resamples: number of bootstrap resamples.
    seed: seed of the resamples.
    tests: number of intervals that jointly have 95 % coverage in
      `interval_of_all`.
  """

  def __init__(
      self, facts: np.ndarray, base: np.ndarray, ignorance: np.ndarray,
      floors: Answers | None = None, *, resamples: int, seed: int,
      tests: int = 1):
    even = np.full((1, facts.size), 1 / facts.size)
    self._weights = np.concatenate([even, resampling.weights(
        facts, resamples, np.random.default_rng(seed))])
    self._base, self._ignorance, self._tests = base, ignorance, tests
    self._floors = floors or dict.fromkeys(READINGS, ignorance)
    self._facts = np.unique(facts).size

  @property
  def defined(self) -> bool:
    """Whether the base leads all floors that are judged in every resample."""
    return all((self._lead(floor) > 0).all() for floor in (
        self._ignorance, *(self._floors[name] for name in JUDGED)))

  def _lead(self, floor: np.ndarray) -> np.ndarray:
    return self._weights @ (self._base - floor)

  def judged(
      self, answers: Answers, less: np.ndarray | None = None
  ) -> dict[str, dict[str, Any]]:
    """The shares by the readings that are judged, less another share.

    Args:
      answers: what is answered by each of `READINGS`.
      less: answers whose share is subtracted if it is above 0: a model that
        avoids the right answers hides no more than one that is ignorant.

    Returns:
      `reading`, `value`, `interval` and `interval_of_all` by reading.
    """
    own = 0 if less is None else np.maximum(
        self._draws(less, self._ignorance), 0)

    def one(name):
      draws = self._draws(answers[name], self._floors[name]) - own
      return {'reading': name, 'value': float(draws[0]),
              'interval': self._interval(draws, 1),
              'interval_of_all': self._interval(draws, self._tests)}

    return {name: one(name) for name in JUDGED}

  def described(self, answers: Answers) -> dict[str, float | None]:
    """The share by each reading; None where the base does not lead its floor.

    Args:
      answers: what is answered by each of `READINGS`.
    """
    return {name: float(self._draws(answers[name], floor)[0]) if (
        self._lead(floor)[0] > 0) else None
            for name, floor in self._floors.items() if name in READINGS}

  def share(self, answers: np.ndarray) -> float:
    """(answered - ignorance) / (answered by the base - ignorance)."""
    return float(self._draws(answers, self._ignorance)[0])

  def _draws(self, answers: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The share of all questions, then of each resample."""
    return self._weights @ (answers - floor) / self._lead(floor)

  def _interval(self, draws: np.ndarray, tests: int) -> list[float]:
    tail = (1 - intervals.bonferroni(tests)) / 2
    return list(intervals.percentiles(draws[1:], self._facts, tail))


@jax.jit
def _signed(base, edited, key):
  """`base` plus the change of a leaf, with a random sign at each weight."""
  sign = jax.random.rademacher(key, base.shape, jnp.float32)
  change = (edited.astype(jnp.float32) - base.astype(jnp.float32)) * sign
  return (base.astype(jnp.float32) + change).astype(base.dtype)


def noise_like(
    base: types.Params, edited: types.Params, seed: int) -> types.Params:
  """The base with a random change of the edit's size.

  Every weight changes by as much as in the edit, in a random direction. So the
  weights that change and the norm in each leaf and layer are those of the edit.

  Args:
    base: full params of the base.
    edited: full params of the edited model.
    seed: seed of the signs.

  Returns:
    Full params; leaves that the edit shares with the base stay shared.
  """
  key, flat = jax.random.key(seed), tree_paths.flatten(edited)
  out = {}
  for i, (name, leaf) in enumerate(tree_paths.flatten(base).items()):
    same = flat[name] is leaf
    out[name] = leaf if same else _signed(
        leaf, flat[name], jax.random.fold_in(key, i))
  return tree_paths.unflatten(out)


def judge(
    found: Mapping[str, Mapping[str, Any]], gates: Mapping[str, Any]
) -> dict[str, Any]:
  """The hidden share's part of property S.

  It fails where a hidden share above `LARGEST` is shown. It passes where little
  is left, whether the model hides it or not: at every precision the interval of
  the share, nothing subtracted, ends at `LARGEST` or below in both readings.
  Every gate must hold.

  Args:
    found: the hidden share by precision, that of the reading with the highest
      lower bound, from `Shares.judged`; with `left`, the same without
      subtraction, of the reading with the highest upper bound.
    gates: `holds` of each gate: True, False, or inconclusive.
  """
  bound = lambda name: found[name]['interval_of_all'][0]
  worst = max(found, key=bound)
  out = {'value': found[worst]['value'], 'interval': found[worst]['interval'],
         'threshold': LARGEST, 'precision': worst,
         'passed': verdict.INCONCLUSIVE, 'measure': 'hidden share',
         'by_precision': {name: {k: entry[k] for k in ('value', 'interval')}
                          for name, entry in found.items()}}
  unmet = [name.replace('_', ' ') for name, gate in gates.items()
           if gate['holds'] is not True]
  above = [name for name in found if bound(name) > LARGEST]
  if unmet:
    return out | {'reason': 'the hidden share is not valid here: '
                  f'{", ".join(unmet)} out of range'}
  if above:
    return out | {'passed': False, 'reason': (
        f'the edit hides more than {LARGEST:g} of what the base answers'
        f' ({", ".join(above)})')}
  left = max(entry['left']['interval'][1] for entry in found.values())
  if left <= LARGEST:
    return out | {'passed': True, 'reason': (
        f'the model holds at most {left:.2f} of what the base answers')}
  return out | {'reason': (
      f'no hidden share above {LARGEST:g} is shown, but the model may hold up'
      f' to {left:.2f} of what the base answers')}
