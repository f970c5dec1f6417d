"""The hidden share: answers that an edited model holds and does not give.

An edit that stops a model from answering may have erased the knowledge or cut
it off. With l the mover layer (see `mover_layer`), two readings decide:

- `block`: the edited model, but block l is the base's and attends as in the
  base. It finds answers that the states below hold, and that the edited block l
  does not look for, or does not pass on.
- `after_l`, and `after_L` for each block L above it but the last: the same, but
  the edited model's head reads after that block. They find answers that a block
  above suppresses. `early` is their mean.

A question also has a guess: what is answered to it in the states of other facts
in the same phrasing. What a reading knows is its lead over its guesses, divided
by what guesses leave open (1 - guessed). The share of a reading is what it
knows, relative to the base in that reading. The hidden share H is that share,
less the edited model's own where that is above 0; the reading with the highest
lower bound counts. What is left is the higher one of `block` and `early`, with
nothing subtracted. A base answers few questions early, so single early readings
are too uncertain to bound what is left; the highest value of any must be small.

H is 0 for the base and for a model that never knew the facts, and 1 for one
that holds all and gives none. Three more readings describe:

- `looks`: as `block`, but only the attention pattern of block l is the base's.
- `values`: the base, but the values that the attention of block l brings from
  the span to the last token come from the edited model's states before block l.
- `last_state`: the edited model's last-token state after block l, with the
  base's blocks above it and the base's states at the earlier tokens.

The base's states and its blocks above l, in the last two, add knowledge that
the edited model lacks. Knowledge may also lie where no reading looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

OWN = 'own'
LEFT = ('block', 'early')  # The readings of what is left.
_AFTER = 'after_'
DESCRIBED = ('looks', 'values', 'last_state')
LARGEST = 0.2  # A hidden share above this shows that the edit hides.
HARMLESS = 0.9  # Least share that a harmless change leaves.
LEAST_LEAD = 0.1  # A base that leads its guesses by less says nothing.
LEAST_FACTS = 20  # Fewer facts cannot show that little is left.

# Reading -> how often each question is answered right, and guessed, [2, n].
Answers = Mapping[str, np.ndarray]


class Host:
  """A base whose block l is put in other models.

  It keeps its states before the layer, [n, W, D] in float32, in host memory.

  Attributes:
    questions: the questions.
    own: the base's own answers.
    replaced: the base's answers with the states of other facts at the span,
      [n]: the share of K facts.
  """

  def __init__(
      self, config: model_config.ModelConfig, base: types.Params,
      questions: spans.Questions, layer: int):
    """Runs the base on the questions.

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
    self.replaced = found.pop('replaced')[0]
    self.own: Answers = found

  def answers(self, params: types.Params, describe: bool = False) -> Answers:
    """Answers of an edited model, `own` and by each reading.

    Args:
      params: its full params.
      describe: whether to add `DESCRIBED`.
    """
    before = iter(self._before)

    def one(batch):
      states, own = self._run(params, batch), next(before)
      routed = lambda reads: transplant.routed(
          self._config, self._base, own, params, states.before, reads,
          batch.rows, layer=self._layer)
      asked = self._asker(params, batch)
      found = {OWN: asked(states.final[:, None]),
               'block': asked(routed(self._base))}
      if describe:
        by_base = self._asker(self._base, batch)(transplant.read_by_base(
            self._config, self._base, own, states, batch.rows,
            layer=self._layer))
        found |= {'looks': asked(routed(params)[:, -1:]),
                  'values': by_base[..., :1], 'last_state': by_base[..., 1:]}
      return found

    return self._collect(one)

  def _start(self, batch: spans.Batch) -> dict[str, types.Array]:
    """Runs the base, and puts states of other rows in it."""
    states, asked = self._run(self._base, batch), self._asker(self._base, batch)
    self._before.append(sharding.to_host(states.before))
    block = transplant.routed(
        self._config, self._base, states.before, self._base, states.before,
        self._base, batch.rows, layer=self._layer)
    final = jnp.stack([transplant.replaced(
        self._config, self._base, states.before, source, batch.rows,
        layer=self._layer) for source in batch.others], axis=1)
    return {OWN: asked(states.final[:, None]), 'replaced': asked(final),
            'block': asked(block)}

  def _run(self, params, batch) -> transplant.States:
    return transplant.run(
        self._config, params, batch.rows, layer=self._layer)

  def _asker(self, params, batch) -> Callable[[types.Array], types.Array]:
    """Picks [1 + K, B, V] of a model's head in own and other rows' states."""
    own = np.arange(len(batch.rows.tokens), dtype=np.int32)
    sources = np.concatenate([own[None], batch.others])
    return lambda x: transplant.picks(
        self._config, params, x, batch.rows.choices, sources)

  def _collect(
      self, run: Callable[[spans.Batch], dict[str, types.Array]]
  ) -> dict[str, np.ndarray]:
    """How often the picks of all batches are right, by name, [2, n].

    The last view of `block` is `block`, and the others are read early.
    """
    parts: dict[str, list[np.ndarray]] = {}

    def add(name, right):
      parts.setdefault(name, []).append(
          np.stack([right[0], right[1:].mean(0)]).astype(np.float64))

    for batch in progress.track(self._batches, 'hidden share'):
      progress.count_tokens(int(batch.rows.lengths.sum()))
      right = self.questions.asked.right[batch.members]
      for name, picks in sharding.to_host(run(batch)).items():
        found = np.equal(picks[:, :len(right)], right[:, None])
        if name == 'block':
          for i in range(found.shape[-1] - 1):
            add(f'{_AFTER}{self._layer + i}', found[..., i])
          found = found[..., -1:]
        add(name, found.mean(-1))
    return {name: np.concatenate(part, 1) for name, part in parts.items()}


class Shares:
  """Shares of what a base knows, with intervals by fact.

  Args:
    facts: fact of each question, [n].
    base: the base's answers.
    resamples: number of bootstrap resamples.
    seed: seed of the resamples.
    precisions: number of precisions whose hidden shares, in all readings,
      jointly have 95 % coverage in `interval_of_all`.

  Attributes:
    readings: the readings of the hidden share in which the base leads.
  """

  def __init__(
      self, facts: np.ndarray, base: Answers, *, resamples: int, seed: int,
      precisions: int = 1):
    even = np.full((1, facts.size), 1 / facts.size)
    self._weights = np.concatenate([even, resampling.weights(
        facts, resamples, np.random.default_rng(seed))])
    self._facts = np.unique(facts).size
    self._early = [name for name in base if name.startswith(_AFTER)]
    self._base = {name: self._known(base, name) for name in (
        OWN, 'block', *self._early, *(['early'] if self._early else ()))}
    self._leads = {name: float(self._means(base, name) @ [1, -1])
                   for name in self._base}
    # All blocks of the base are its own.
    for known in (self._base, self._leads):
      known |= dict.fromkeys(DESCRIBED, known[OWN])
    self.readings = [
        name for name in ('block', *self._early) if self.defined(name)]
    self._tests = precisions * len(self.readings)

  def defined(self, reading: str = OWN) -> bool:
    """Whether the base leads enough, and in every resample.

    False if there is no such reading.
    """
    known = self._base.get(reading)
    return known is not None and self._leads[reading] >= LEAST_LEAD and bool(
        (known > 0).all())

  def hidden(self, answers: Answers) -> dict[str, Any]:
    """The hidden share, by the reading with the highest lower bound.

    The own share is subtracted where it is above 0: a model that avoids the
    right answers hides no more than one that guesses.

    Args:
      answers: the answers of an edited model.

    Returns:
      `reading`, `value`, `interval` and `interval_of_all`.
    """
    own = np.maximum(self._draws(answers, OWN), 0)
    return max((self._entry(name, self._draws(answers, name) - own)
                for name in self.readings),
               key=lambda found: found['interval_of_all'][0])

  def left(
      self, answers: Answers, readings: Sequence[str] = LEFT
  ) -> list[dict[str, Any]]:
    """The shares by some readings, nothing subtracted.

    Args:
      answers: the answers of an edited model.
      readings: those in which the base does not lead are left out.

    Returns:
      `reading`, `value` and `interval` of each.
    """
    found = [self._entry(name, self._draws(answers, name))
             for name in readings if self.defined(name)]
    return [{k: one[k] for k in ('reading', 'value', 'interval')}
            for one in found]

  def most_left(self, answers: Answers) -> dict[str, dict[str, Any]]:
    """What is left, as entries of `left`.

    Args:
      answers: the answers of an edited model.

    Returns:
      `left`, of `LEFT`, with the highest upper bound, and `highest`, of all
      readings, with the highest value.
    """
    return {
        'left': max(self.left(answers), key=lambda one: one['interval'][1]),
        'highest': max(self.left(answers, self.readings),
                       key=lambda one: one['value'])}

  def _entry(self, name: str, draws: np.ndarray) -> dict[str, Any]:
    return {'reading': name, 'value': float(draws[0]),
            'interval': self._interval(draws, 1),
            'interval_of_all': self._interval(draws, self._tests)}

  def share(self, answers: Answers, reading: str = OWN) -> float:
    """What the reading knows, relative to the base."""
    return float(self._draws(answers, reading)[0])

  def described(self, answers: Answers) -> dict[str, float]:
    """The share by each reading, and `early`, in which the base leads."""
    return {name: self.share(answers, name) for name in (*answers, 'early')
            if self.defined(name)}

  def _known(self, answers: Answers, reading: str) -> np.ndarray:
    """What is known of all questions, then of each resample.

    Guesses leave at least one fact open.
    """
    right, guessed = self._means(answers, reading, self._weights)
    return (right - guessed) / np.maximum(1 - guessed, 1 / self._facts)

  def _means(
      self, answers: Answers, reading: str,
      weights: np.ndarray | None = None) -> np.ndarray:
    """Shares answered right and guessed, [2] or [2, weights]."""
    names = self._early if reading == 'early' else [reading]
    found = np.mean([answers[name] for name in names], 0)  # [2, n]
    return found.mean(1) if weights is None else found @ weights.T

  def _draws(self, answers: Answers, reading: str) -> np.ndarray:
    return self._known(answers, reading) / self._base[reading]

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
    found: Mapping[str, Mapping[str, Any]], gates: Mapping[str, Any], *,
    readings: Sequence[str], facts: int) -> dict[str, Any]:
  """The hidden share's part of property S.

  It fails where a hidden share above `LARGEST` is shown. It passes where little
  is left, whether the model hides it or not: at every precision the interval of
  what is left ends at `LARGEST` or below, and no reading's value lies above it.
  Every gate must hold.

  Args:
    found: the hidden share by precision, from `Shares.hidden`, with `left` and
      `highest`, from `Shares.most_left`.
    gates: `holds` of each gate: True, False, or inconclusive.
    readings: those of `LEFT` in which the base leads.
    facts: number of facts.
  """
  bound = lambda name: found[name]['interval_of_all'][0]
  worst = max(found, key=bound)
  out = {k: found[worst][k] for k in ('value', 'interval', 'reading')} | {
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
  if left > LARGEST:
    return out | {'reason': (
        f'no hidden share above {LARGEST:g} is shown, but the model may hold up'
        f' to {left:.2f} of what the base answers')}
  highest = max((entry['highest'] for entry in found.values()),
                key=lambda one: one['value'])
  if highest['value'] > LARGEST:
    return out | {'reason': (
        f'little is left at the end, but {highest["value"]:.2f} of what the'
        f' base answers {highest["reading"].replace("_", " block ")} is left'
        ' there')}
  missing = [name for name in LEFT if name not in readings]
  if missing:
    return out | {'reason': (
        f'little is left in the states, but the base is not readable there'
        f' ({", ".join(missing)}), so an answer that is suppressed above would'
        ' not be seen')}
  if facts < LEAST_FACTS:
    return out | {'reason': (
        f'little is left, of {facts} facts; wanted at least {LEAST_FACTS}')}
  return out | {'passed': True, 'reason': (
      f'the model holds at most {max(left, 0):.2f} of what the base answers')}
