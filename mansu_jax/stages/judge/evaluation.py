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
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import sharding
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib

MODELS = ('base', 'unlearned')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """What one model at one precision did.

  Attributes:
    scores: of all questions, in the order of `Evaluator.questions`.
    texts: losses by kind of text.
  """

  scores: accuracy.Scores
  texts: Any


class Evaluator:
  """Packs the questions once and measures any params of one shape."""

  def __init__(
      self, config: run_config.RunConfig, inputs: inputs_lib.Inputs,
      model: Any):
    self.questions: list[questions_lib.Question] = []
    self.slices: dict[str, slice] = {}
    for name, questions in inputs.evaluation.items():
      start = len(self.questions)
      self.questions += questions
      self.slices[name] = slice(start, len(self.questions))
    self.has_data = bool(self.questions or inputs.heldout_text)
    if not self.has_data:
      return  # There may be no tokenizer.
    limits = dict(token_budget=config.eval.batch_tokens,
                  max_length=model.config.max_position)
    self._task = accuracy.build_task(
        self.questions, model.tokenizer, chat=config.data.chat, **limits)
    self._texts = perplexity.build_task(
        inputs.heldout_text, model.tokenizer,
        window=config.data.text_window * 2,
        max_windows=config.eval.text_windows, **limits)
    # One for each number of layers in common: never a second program.
    self._scorer = functools.cache(
        functools.partial(_scorer, model.config))

  def __call__(
      self, params: types.Params, *, common: int = 0,
      kept: scoring.HiddenCache | None = None) -> Measured:
    """Scores all questions and texts.

    Args:
      params: the model.
      common: as many of its layers, from the first on, it has in common with
        the others that are given `kept`.
      kept: what those layers gave.
    """
    scorer = self._scorer(common)
    return Measured(
        scores=accuracy.score(scorer, params, self._task, kept),
        texts=perplexity.score(scorer, params, self._texts, kept))

  def as_tree(self, measured: Measured) -> types.PyTree:
    """What was measured, as a dict of arrays, none of size 0."""
    out = {'texts': {str(i): dataclasses.asdict(loss) for i, loss in enumerate(
        measured.texts.values())}, 'kinds': checkpoints.to_bytes(
            list(measured.texts))}
    if measured.scores.logprob.size:
      out['logprob'] = measured.scores.logprob
    return out

  def from_tree(self, tree: types.PyTree) -> Measured:
    """Inverse of `as_tree`."""
    return Measured(
        scores=accuracy.judge(
            self.questions, tree.get('logprob', np.zeros((0, 0)))),
        texts={kind: perplexity.TextLoss(**tree['texts'][str(i)])
               for i, kind in enumerate(
                   checkpoints.from_bytes(tree['kinds']))})

  def programs(
      self, params: types.Params, common: int) -> list[scoring.Call]:
    """What measuring models runs that have their first layers in common."""
    if not self.has_data:
      return []
    scorer, out = self._scorer(common), []
    for task in (self._task, self._texts):
      out += scorer.programs(params, task.batches, task.positions, task.targets)
    return out


def _scorer(config: Any, common: int) -> scoring.Scorer:
  """Scores models that have their first layers in common."""
  if not common:
    return scoring.Scorer(
        lambda params, tokens, positions, mask: decoder.forward(
            config, params, tokens, positions=positions, attention_mask=mask),
        decoder.unembed)
  return scoring.Scorer(
      lambda params, x, positions, mask: decoder.forward(
          config, params, embeddings=x, first_layer=common,
          positions=positions, attention_mask=mask),
      decoder.unembed,
      prefix=lambda params, tokens, positions, mask: decoder.run_prefix(
          config, params, tokens, layer=common, positions=positions,
          attention_mask=mask))


def layers_in_common(first: types.Params, second: types.Params) -> int:
  """How many layers, from the lowest on, are the same in two models.

  None where the embeddings differ; else `decoder.run_prefix` gives the same for
  both up to that layer.
  """
  same = jax.jit(lambda a, b: jnp.all(a == b, axis=tuple(range(1, a.ndim))))
  if not np.all(sharding.to_host(same(first['embed'], second['embed']))):
    return 0
  rows = np.all(jax.tree.leaves(sharding.to_host(jax.tree.map(
      same, first['layers'], second['layers']))), axis=0)  # [L]
  return int(np.argmin(rows)) if not rows.all() else rows.size


def measure_all(
    config: run_config.RunConfig, evaluator: Evaluator,
    quantize: quantizers.Quantizers, model: Any, unlearned: types.Params,
    cache: checkpoints.NoCache = checkpoints.NoCache()
) -> dict[tuple[str, str], Measured]:
  """`{(model, precision): Measured}` of both models at every precision.

  Layers below the edit are alike in both, and are run once for both. Where
  there is nothing to measure on, nothing is run: {}. Each is kept in `cache`,
  the stages of a run that can go on.
  """
  if not evaluator.has_data:
    return {}
  common = layers_in_common(model.params, unlearned)
  views = quantizers.views(config, quantize)
  out = {}
  for precision, view in views.items():
    kept = scoring.HiddenCache()
    for name, params in zip(MODELS, (model.params, unlearned)):
      measure = lambda: evaluator.as_tree(evaluator(
          view(params), common=common, kept=kept))
      out[name, precision] = evaluator.from_tree(
          cache.get_or_compute(f'evaluation_{name}_{precision}', measure))
  return {(name, precision): out[name, precision]
          for name in MODELS for precision in views}
