"""Questions by first tokens -> states -> lens, suppression control, copy-back.

What is asked are the forget set's phrasings that are not trained on, where
first tokens tell the choices apart; the lens is fitted on retain questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization
from mansu_jax.erasure import lens
from mansu_jax.erasure import readability
from mansu_jax.erasure import suppression
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.statistics import intervals
from mansu_jax.statistics import resampling

_LEAST = 8  # Questions; fewer say nothing of layers.

# Of params, and by `donate` of leaves that are not used again.
Views = Mapping[str, Callable[..., types.Params]]


class NothingToRead(ValueError):
  """There are no questions, or none to fit a lens on."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
  """What is read, and on what the lens is fitted.

  Attributes:
    fit: prompts of retain questions, as ids.
    prompts: of the m questions asked.
    asked: their choices' first tokens.
    facts: [m], of each question.
    left_out: how many were, for choices of one first token.
  """

  fit: list[list[int]]
  prompts: list[list[int]]
  asked: suppression.Asked
  facts: np.ndarray
  left_out: int

  def states(self, config: Any, params: types.Params
             ) -> tuple[lens.States, lens.States]:
    """A model's states at the prompts of `fit`, and at those asked."""
    found = lens.states(config, params, self.fit + self.prompts)
    size = len(self.fit)
    return found.take(slice(0, size)), found.take(slice(size, None))


def questions(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, tokenizer: Any
) -> Questions:
  """Chooses them.

  Raises:
    NothingToRead: too few of either.
  """
  most = config.eval.lens_questions
  if not most:
    raise NothingToRead('--eval_lens_questions=0 skips it')
  fit = inputs_lib.thin(inputs.splits.retain_train, most, config.seed)
  asked = [q for split in splits_lib.FORGOTTEN
           for q in inputs.evaluation.get(split, ())]
  _check_enough(fit, 'retain questions (use train) to fit a lens on')
  _check_enough(asked, 'forget questions (use near or far)')
  encode = functools.partial(
      tokenization.encode_questions, tokenizer=tokenizer, chat=config.data.chat)
  encoded = encode(asked)
  first = [[ids[0] for ids in e.choices] for e in encoded]
  told_apart = [i for i, row in enumerate(first) if len(set(row)) == len(row)]
  _check_enough(told_apart, 'forget questions (use near or far) whose choices'
                ' differ in their first tokens')
  if len({asked[i].fact for i in told_apart}) < 2:
    raise NothingToRead(
        f'its {len(told_apart)} forget questions (use near or far) are about'
        ' one fact; wanted two facts at least, for what guessing gives')
  width = max(len(first[i]) for i in told_apart)
  rows = [first[i] + first[i][:1] * (width - len(first[i]))
          for i in told_apart]
  return Questions(
      fit=[list(e.prompt) for e in encode(fit)],
      prompts=[list(encoded[i].prompt) for i in told_apart],
      asked=suppression.Asked(
          np.array(rows, np.int32),
          np.array([asked[i].answer_index for i in told_apart], np.int32),
          np.array([len(first[i]) for i in told_apart], np.int32)),
      facts=np.array([asked[i].fact for i in told_apart]),
      left_out=len(asked) - len(told_apart))


def _check_enough(found: Sequence[Any], what: str) -> None:
  if len(found) < _LEAST:
    raise NothingToRead(
        f'there are {len(found)} {what}; wanted at least {_LEAST}')


class Reader:
  """Reads the base and the unlearned model at every precision, each once."""

  def __init__(
      self, config: run_config.RunConfig, inputs: inputs_lib.Inputs,
      model: Any, unlearned: types.Params, views: Views):
    """Runs the base in full precision.

    Args:
      config: the run's.
      inputs: its data.
      model: the base model.
      unlearned: full params after.
      views: `{precision: params -> params}`, full precision first.

    Raises:
      NothingToRead: as `questions`.
    """
    self._config, self._model, self._views = config, model, views
    self._questions = questions(config, inputs, model.tokenizer)
    self._params = {'base': model.params, 'unlearned': unlearned}
    self._resampling = dict(
        resamples=config.eval.bootstrap, seed=config.seed)
    self._base = self._questions.states(model.config, model.params)
    self._common, self._above = evaluation.layers_in_common(
        model.params, unlearned), {}
    self._full, *self._quantized = views
    choices, self._guessed = self._questions.asked.choices, {}
    self._tokens = np.unique(choices)
    self._choices = np.searchsorted(self._tokens, choices)
    self._read = {('base', self._full): self._picks(
        *self._base, model.params)}

  def picks(self, name: str, precision: str) -> np.ndarray:
    """The choices that each layer of a model prefers, [L + 1, m] int."""
    key = name, precision
    if key not in self._read:
      params = self._views[precision](self._params[name])
      scores = self._scores(*self._questions.states(
          self._model.config, params), params)
      self._read[key] = readability.picks(scores, self._choices)
      if name == 'unlearned':
        self._guessed[precision] = readability.guesses(
            scores, self._choices, self._questions.asked.right,
            self._questions.facts, draws=self._config.eval.bootstrap,
            seed=self._config.seed)
    return self._read[key]

  def _scores(self, fit, at, params) -> np.ndarray:
    return lens.read(fit, at, _table(params), self._tokens)

  def _picks(self, fit, at, params) -> np.ndarray:
    return readability.picks(self._scores(fit, at, params), self._choices)

  def _right(self, picks: np.ndarray) -> np.ndarray:
    """Whether the model itself answers each question [m]."""
    return np.equal(picks[-1], self._questions.asked.right)

  def control(
      self, pairs: Sequence[pairs_lib.AttributionPair]
  ) -> suppression.Control:
    """The control that answers as few questions as the unlearned model.

    Args:
      pairs: whose clean prompts it hides the answers of as well.
    """
    asked, config = self._questions.asked, self._model.config
    wanted = self._right(self.picks('unlearned', self._full)).mean()
    hide, every = self._base[1], asked
    if pairs:
      hide, every = _with_pairs(
          hide, asked, pairs, lens.states(
              config, self._model.params, [p.clean_ids for p in pairs]))
    return suppression.make(
        config, self._model.params, hide=hide, asked=every,
        keep=self._base[0], wanted=float(wanted),
        match=np.arange(len(every.right)) < len(asked.right))

  def measure(self, control: suppression.Control | None) -> dict[str, Any]:
    """Readability of the unlearned model at every precision.

    Beside it are the base under the precision's own quantizer (in full
    precision under the first) and the control, in full precision.

    Args:
      control: from `control`; None: without.

    Raises:
      readability.NothingToRead: the base holds nothing.
    """
    asked, facts = self._questions.asked, self._questions.facts
    hides = {} if control is None else {'suppression': self._picks(
        *(suppression.states(
            self._model.config, self._model.params, control, s)
          for s in self._base), control.params)}

    def one(precision):
      unlearned = self.picks('unlearned', precision)
      quantized = {'base_quantized': self.picks('base', name)
                   for name in quantizers.of_base(precision, self._quantized)}
      return readability.measure(
          self.picks('base', self._full), unlearned, quantized | hides,
          asked.right, facts, self._guessed[precision], **self._resampling)

    out = {precision: one(precision) for precision in self._views}
    return out[self._full] | {
        'by_precision': {name: out[name] for name in self._quantized},
        'fitted_on': len(self._questions.fit),
        'left_out': self._questions.left_out}

  def answered(self, params: types.Params, precision: str) -> np.ndarray:
    """Whether a model answers each question, by first tokens [m].

    Args:
      params: that differ from the base only where the edit is made; the layers
        below are run once for all such models.
      precision: what they were made with, one of the views.
    """
    if precision not in self._above:  # What others kept is not needed again.
      self._above = {precision: lens.UpperLayers(
          self._model.config, self._questions.prompts, self._common)}
    asked = self._questions.asked
    return np.equal(asked.right, lens.says(
        self._above[precision](params), _table(params), asked.choices))

  def _answered_under(
      self, precision: str, params: types.Params) -> np.ndarray:
    """As `answered`, of params that are not used again."""
    return self.answered(self._views[precision](params, donate=_new_leaves(
        params, self._params.values())), precision)

  def copy_back(
      self, circuit: graph.Circuit, randoms: Sequence[graph.Circuit],
      halves: Sequence[graph.Circuit], moved: Sequence[float],
      precisions: Sequence[str]
  ) -> dict[str, Any]:
    """Which part of the edit, when undone, brings the answers back?

    theta_0 is copied back on the circuit alone, off it alone, and on random
    circuits of the same shape; and on halves of the circuit, which tell even
    where all of the edit lies in it. `share` is the part of what was forgotten
    that comes back, (acc - acc_u) / (acc_0 - acc_u).

    Args:
      circuit: C.
      randoms: random circuits.
      halves: the half of C that attribution ranks highest, then random ones of
        as many nodes in each layer; or none at all.
      moved: the share of the circuit's moved weights that each half holds.
      precisions: some of the views.
    """
    base, unlearned = self._params['base'], self._params['unlearned']
    kept_on = lambda c: _copy(unlearned, base, c)
    confined = _same(kept_on(circuit), base)
    names = [f'random_half_{i - 1}' if i else 'best_half'
             for i in range(len(halves))]
    out = {'confined': confined, 'by_precision': {},
           'best_half_less_random': {}, 'moved': dict(zip(names, moved))}
    share = functools.partial(
        _share, self._weights(), np.unique(self._questions.facts).size)
    for precision in precisions:
      answered = functools.partial(self._answered_under, precision)
      acc = {name: self._right(self.picks(name, precision))
             for name in self._params}
      if confined:  # Nothing to run: undone on C it is the base.
        acc |= {'circuit': acc['base'], 'rest': acc['unlearned']}
      else:
        acc |= {'circuit': answered(kept_on(circuit)),
                'rest': answered(_copy(base, unlearned, circuit))}
        acc |= {f'random_{i}': answered(kept_on(c))
                for i, c in enumerate(randoms)}
      acc |= {name: answered(kept_on(c))
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

  def _weights(self) -> np.ndarray:
    """Of the questions: even, then resampled by fact, [1 + draws, m]."""
    rng, facts = np.random.default_rng(self._config.seed), self._questions.facts
    return np.stack([np.full(facts.size, 1 / facts.size)] + [
        resampling.weights(facts, rng)
        for _ in range(self._resampling['resamples'])])


def _share(weights, facts, gained, lost) -> dict[str, Any]:
  """Share of what was forgotten that comes back, of each question [m]."""
  lost, back = weights @ lost, weights @ gained
  if (lost <= 0).any():
    return {'share': None, 'interval': [None, None]}
  values = back / lost
  return {'share': float(values[0]),
          'interval': intervals.interval(values[1:], facts)}


def _with_pairs(hide, asked, pairs, states):
  """What is hidden and asked, with pairs as questions of two choices."""
  tokens = np.array([[p.answer_id, p.corrupt_answer_id] for p in pairs])
  width = asked.choices.shape[1]
  tokens = np.pad(tokens, [(0, 0), (0, width - 2)], mode='edge')
  fields = tokens, np.zeros(len(pairs)), np.full(len(pairs), 2)
  return (lens.States(*map(np.concatenate, zip(hide, states))),
          suppression.Asked(*(np.concatenate([a, b]).astype(np.int32)
                              for a, b in zip(asked, fields))))


def _table(params: types.Params) -> types.Array:
  """The unembedding [V, D]."""
  return params.get('lm_head', params['embed'])


def _copy(
    to: types.Params, source: types.Params, circuit: graph.Circuit
) -> types.Params:
  """`to` with the circuit's weights of `source`; it shares all other leaves."""
  index = param_mask.make_index(circuit)
  return param_mask.scatter(to, index, param_mask.gather(source, index))


def _new_leaves(
    params: types.Params, others: Iterable[types.Params]) -> list[str]:
  """Names of those that are in none of the others."""
  known = {id(leaf) for other in others for leaf in jax.tree.leaves(other)}
  return [name for name, leaf in tree_paths.flatten(params).items()
          if id(leaf) not in known]


@jax.jit
def _all_equal(first, second):
  return jax.tree.reduce(
      lambda a, b: a & b,
      jax.tree.map(lambda a, b: (a == b).all(), first, second))


def _same(first: types.Params, second: types.Params) -> bool:
  return bool(_all_equal(first, second))
