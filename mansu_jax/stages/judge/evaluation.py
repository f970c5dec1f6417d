"""Base and unlearned model, in full precision and quantized, on every split."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.eval import accuracy
from mansu_jax.eval import perplexity
from mansu_jax.eval import scoring
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import sharding
from mansu_jax.stages.judge import ignorance
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib

MODELS = ('base', 'unlearned')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """One model's results at one precision.

  Attributes:
    scores: of all questions, in the order of `Evaluator.questions`.
    ignorance: [n], how often the model answers each question right without
      knowing its fact; see `ignorance`. Chance where it is not measured.
    texts: losses by kind of text.
  """

  scores: accuracy.Scores
  ignorance: np.ndarray
  texts: Any


class Evaluator:
  """Packs the questions and texts once, and scores any params of one shape.

  Attributes:
    questions: all questions, split after split.
    slices: each split's slice of `questions`.
    has_data: False if there are neither questions nor texts.
  """

  def __init__(
      self, options: run_config.EvalConfig, data: run_config.DataConfig,
      inputs: inputs_lib.Inputs, model: loading.LoadedModel):
    self.questions: list[questions_lib.Question] = []
    self.slices: dict[str, slice] = {}
    for name, questions in inputs.evaluation.items():
      start = len(self.questions)
      self.questions += questions
      self.slices[name] = slice(start, len(self.questions))
    self.has_data = bool(self.questions or inputs.heldout_text)
    if not self.has_data:
      return  # The model may have no tokenizer.
    limits = dict(token_budget=options.batch_tokens,
                  max_length=model.config.max_position)
    self._judged = ignorance.rows(self.slices, len(self.questions))
    probes, self._owners = ignorance.readable_probes(
        [self.questions[i] for i in self._judged], model.tokenizer,
        chat=data.chat, max_length=model.config.max_position)
    # Probes share their prompts with questions, which makes them cheap.
    self._task = accuracy.build_task(
        [*self.questions, *probes], model.tokenizer, chat=data.chat, **limits)
    self._texts = perplexity.build_task(
        inputs.heldout_text, model.tokenizer, window=data.text_window * 2,
        max_windows=options.text_windows, **limits)
    # One compiled program for each number of shared layers.
    self._scorer = functools.cache(
        functools.partial(make_scorer, model.config))

  def __call__(
      self, params: types.Params, *, common: int = 0,
      kept: scoring.HiddenCache | None = None) -> Measured:
    """Scores all questions and texts.

    Args:
      params: the model.
      common: number of first layers that it shares with the other models
        that are scored with the same `kept`.
      kept: the outputs of those layers, filled at the first call.
    """
    scorer = self._scorer(common)
    scores = accuracy.score(scorer, params, self._task, kept)
    asked = slice(len(self.questions))
    levels = np.array([q.chance for q in self.questions])
    levels[self._judged] = ignorance.levels(
        [self.questions[i] for i in self._judged], self._owners,
        scores.correct[asked.stop:])
    return Measured(
        scores=scores.take(asked), ignorance=levels,
        texts=perplexity.score(scorer, params, self._texts, kept))

  def as_tree(self, measured: Measured) -> types.PyTree:
    """`measured` as a dict of arrays without empty ones, for a checkpoint."""
    out = {'texts': {str(i): dataclasses.asdict(loss) for i, loss in enumerate(
        measured.texts.values())}, 'kinds': checkpoints.to_bytes(
            list(measured.texts))}
    if measured.scores.logprob.size:
      out['logprob'] = measured.scores.logprob
      out['ignorance'] = measured.ignorance
    return out

  def from_tree(self, tree: types.PyTree) -> Measured:
    """Inverse of `as_tree`."""
    return Measured(
        scores=accuracy.judge(
            self.questions, tree.get('logprob', np.zeros((0, 0)))),
        ignorance=tree.get('ignorance', np.zeros(0)),
        texts={kind: perplexity.TextLoss(**tree['texts'][str(i)])
               for i, kind in enumerate(
                   checkpoints.from_bytes(tree['kinds']))})

  def programs(
      self, params: types.Params, common: int) -> list[scoring.Call]:
    """The programs that score models which share their first layers."""
    if not self.has_data:
      return []
    scorer, out = self._scorer(common), []
    for task in (self._task, self._texts):
      out += scorer.programs(params, task.batches, task.positions, task.targets)
    return out


def make_scorer(config: Any, common: int = 0) -> scoring.Scorer:
  """A scorer of models that share their first `common` layers."""
  unembed = functools.partial(decoder.unembed, config)
  if not common:
    return scoring.Scorer(
        lambda params, tokens, positions, mask: decoder.forward(
            config, params, tokens, positions=positions, attention_mask=mask),
        unembed)
  return scoring.Scorer(
      lambda params, x, positions, mask: decoder.forward(
          config, params, embeddings=x, first_layer=common,
          positions=positions, attention_mask=mask),
      unembed,
      prefix=lambda params, tokens, positions, mask: decoder.run_prefix(
          config, params, tokens, layer=common, positions=positions,
          attention_mask=mask))


def layers_in_common(first: types.Params, second: types.Params) -> int:
  """Number of first layers that are equal in two models.

  Up to that layer `decoder.run_prefix` gives the same for both. 0 if the
  embeddings differ.
  """
  same = jax.jit(lambda a, b: jnp.all(a == b, axis=tuple(range(1, a.ndim))))
  if not np.all(sharding.to_host(same(first['embed'], second['embed']))):
    return 0
  rows = np.all(jax.tree.leaves(sharding.to_host(jax.tree.map(
      same, first['layers'], second['layers']))), axis=0)  # [L]
  return int(np.argmin(rows)) if not rows.all() else rows.size


def measure_all(
    evaluator: Evaluator, views: quantizers.Views, base: types.Params,
    unlearned: types.Params,
    cache: checkpoints.NoCache = checkpoints.NoCache()
) -> dict[tuple[str, str], Measured]:
  """Measures both models at every precision.

  Layers below the edit are equal in both models and run once for both.

  Args:
    evaluator: of the run's questions and texts.
    views: from `Quantizers.views`.
    base: full params before unlearning.
    unlearned: full params after it.
    cache: keeps each result for a resumed run.

  Returns:
    `{(model, precision): Measured}`; {} without questions and texts.
  """
  if not evaluator.has_data:
    return {}
  common = layers_in_common(base, unlearned)
  out = {}
  for precision, view in views.items():
    kept = scoring.HiddenCache()
    for name, params in zip(MODELS, (base, unlearned)):
      measure = lambda: evaluator.as_tree(evaluator(
          view(params), common=common, kept=kept))
      out[name, precision] = evaluator.from_tree(
          cache.get_or_compute(f'evaluation_{name}_{precision}', measure,
                               of_base=name == 'base'))
  return {(name, precision): out[name, precision]
          for name in MODELS for precision in views}
