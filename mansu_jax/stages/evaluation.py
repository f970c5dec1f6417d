"""Base and unlearned model, in full precision and quantized, on every split."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

from mansu_jax import config as run_config
from mansu_jax import quant
from mansu_jax import types
from mansu_jax.data import questions as questions_lib
from mansu_jax.eval import accuracy
from mansu_jax.eval import perplexity
from mansu_jax.eval import scoring
from mansu_jax.models import decoder
from mansu_jax.models import layout as model_layout
from mansu_jax.stages import inputs as inputs_lib

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
    limits = dict(token_budget=config.eval.batch_tokens,
                  max_length=model.config.max_position)
    self._task = accuracy.build_task(
        self.questions, model.tokenizer, **limits)
    self._texts = perplexity.build_task(
        inputs.heldout_text, model.tokenizer,
        window=config.data.text_window * 2,
        max_windows=config.eval.text_windows, **limits)
    apply = lambda params, tokens, positions, mask: decoder.forward(
        model.config, params, tokens, positions=positions,
        attention_mask=mask)
    self._scorer = scoring.Scorer(apply, decoder.unembed)

  def __call__(self, params: types.Params) -> Measured:
    """Scores all questions and texts."""
    return Measured(
        scores=accuracy.score(self._scorer, params, self._task),
        texts=perplexity.score(self._scorer, params, self._texts))


def quantizer(
    model: Any, name: str) -> Callable[[types.Params], types.Params]:
  """params -> params as the named scheme stores them, decoded."""
  layout = model_layout.block_layout(model.config)
  return lambda params: quant.fake_quantize(params, name, layout)


def measure_all(
    config: run_config.RunConfig, evaluator: Evaluator, model: Any,
    unlearned: types.Params) -> dict[tuple[str, str], Measured]:
  """`{(model, precision): Measured}` of both models at every precision."""
  out = {}
  for name, params in zip(MODELS, (model.params, unlearned)):
    out[name, 'fp'] = evaluator(params)
    for scheme in config.quant_schemes:
      out[name, scheme] = evaluator(quantizer(model, scheme)(params))
  return out
