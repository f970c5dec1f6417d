"""Readability: can a lens read the answers from the states of each layer?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.erasure import lens
from mansu_jax.erasure import readability
from mansu_jax.erasure import suppression
from mansu_jax.models.io import loading
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import first_token_questions
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import quantizer_rules


class Reader:
  """Reads the base and the unlearned model at every precision, each once.

  Attributes:
    questions: what both are asked.
    params: full params of `base` and `unlearned`.
    full: name of the full-precision view.
  """

  def __init__(
      self, questions: first_token_questions.Questions,
      model: loading.LoadedModel, unlearned: types.Params,
      views: quantizers.Views, *, resamples: int, seed: int):
    """Runs the base in full precision.

    Args:
      questions: from `first_token_questions.choose`.
      model: the base.
      unlearned: full params after unlearning.
      views: from `Quantizers.views`.
      resamples: bootstrap resamples.
      seed: of resamples and guesses.
    """
    self.questions, self._model, self._views = questions, model, views
    self.params: Mapping[str, types.Params] = {
        'base': model.params, 'unlearned': unlearned}
    self._resampling = dict(resamples=resamples, seed=seed)
    self._base = questions.states(model.config, model.params)
    self._common, self._above = evaluation.layers_in_common(
        model.params, unlearned), {}
    self.full, *self._quantized = views
    choices, self._guessed = questions.asked.choices, {}
    self._tokens = np.unique(choices)
    self._choices = np.searchsorted(self._tokens, choices)
    self._read = {('base', self.full): self._picks(
        *self._base, model.params)}

  def picks(self, name: str, precision: str) -> np.ndarray:
    """The likeliest choice by each layer's state, [L + 1, m] int."""
    key = name, precision
    if key not in self._read:
      params = self._views[precision](self.params[name])
      scores = self._scores(*self.questions.states(
          self._model.config, params), params)
      self._read[key] = readability.picks(scores, self._choices)
      if name == 'unlearned':
        self._guessed[precision] = readability.guesses(
            scores, self._choices, self.questions.asked.right,
            self.questions.facts, draws=self._resampling['resamples'],
            seed=self._resampling['seed'])
    return self._read[key]

  def _scores(self, fit, at, params) -> np.ndarray:
    return lens.read(fit, at, _table(params), self._tokens)

  def _picks(self, fit, at, params) -> np.ndarray:
    return readability.picks(self._scores(fit, at, params), self._choices)

  def correct(self, picks: np.ndarray) -> np.ndarray:
    """Whether the model itself answers each question correctly [m]."""
    return np.equal(picks[-1], self.questions.asked.right)

  def control(
      self, pairs: Sequence[pairs_lib.AttributionPair]
  ) -> suppression.Control:
    """A model that hides answers at its output, with the unlearned accuracy.

    Args:
      pairs: attribution pairs; the control hides the answers of their clean
        prompts too.
    """
    asked, config = self.questions.asked, self._model.config
    wanted = self.correct(self.picks('unlearned', self.full)).mean()
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

    It is compared with the base under the same quantizer (in full precision
    under the first one) and with the control in full precision.

    Args:
      control: from `control`, or None.

    Raises:
      readability.NothingToRead: nothing can be read from the base either.
    """
    asked, facts = self.questions.asked, self.questions.facts
    hides = {} if control is None else {'suppression': self._picks(
        *(suppression.states(
            self._model.config, self._model.params, control, s)
          for s in self._base), control.params)}

    def one(precision):
      unlearned = self.picks('unlearned', precision)
      quantized = {
          'base_quantized': self.picks('base', name)
          for name in quantizer_rules.of_base(precision, self._quantized)}
      return readability.measure(
          self.picks('base', self.full), unlearned, quantized | hides,
          asked.right, facts, self._guessed[precision], **self._resampling)

    out = {precision: one(precision) for precision in self._views}
    return out[self.full] | {
        'by_precision': {name: out[name] for name in self._quantized},
        'fitted_on': len(self.questions.fit),
        'left_out': self.questions.left_out}

  def answered(self, params: types.Params, precision: str) -> np.ndarray:
    """Whether a model answers each question correctly by first tokens [m].

    Args:
      params: full params that differ from the base in the edit's layers only;
        the layers below run once for all such models.
      precision: the view that made them.
    """
    if precision not in self._above:  # Drops the states of other precisions.
      self._above = {precision: lens.UpperLayers(
          self._model.config, self.questions.prompts, self._common)}
    asked = self.questions.asked
    return np.equal(asked.right, lens.says(
        self._above[precision](params), _table(params), asked.choices))

  def answered_under(
      self, precision: str, params: types.Params) -> np.ndarray:
    """`answered` of params quantized first; takes over their memory."""
    return self.answered(self._views[precision](params, donate=_new_leaves(
        params, self.params.values())), precision)


def _with_pairs(hide, asked, pairs, states):
  """Adds pairs as questions of two choices to the states and questions."""
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


def _new_leaves(
    params: types.Params, others: Iterable[types.Params]) -> list[str]:
  """Names of the leaves that no other params share."""
  known = {id(leaf) for other in others for leaf in jax.tree.leaves(other)}
  return [name for name, leaf in tree_paths.flatten(params).items()
          if id(leaf) not in known]
