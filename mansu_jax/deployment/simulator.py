"""The simulator: the decoder of this package on decoded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools

import jax
import numpy as np

from mansu_jax import quant
from mansu_jax import types
from mansu_jax.data import questions as questions_lib
from mansu_jax.deployment import activations
from mansu_jax.eval import accuracy
from mansu_jax.eval import scoring
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.models import layout as model_layout
from mansu_jax.models.io import loading


class Simulator:
  """Scores questions by any params of one shape, as a run's evaluation does.

  Attributes:
    model: The model in full precision.
  """

  def __init__(
      self, model: loading.LoadedModel,
      questions: Sequence[questions_lib.Question], *, chat: bool = False):
    """Packs the questions.

    Args:
      model: Model in full precision.
      questions: Questions to score.
      chat: Whether prompts use the tokenizer's chat template.
    """
    self.model = model
    self._layout = model_layout.block_layout(model.config)
    self._task = accuracy.build_task(
        questions, model.tokenizer, chat=chat,
        max_length=model.config.max_position)
    self._unembed = functools.partial(decoder.unembed, model.config)
    self._scorer = scoring.Scorer(self._forward, self._unembed)

  def __call__(self, params: types.Params) -> accuracy.Scores:
    """Scores all questions by some params."""
    return accuracy.score(self._scorer, params, self._task)

  def score_with_rounded_activations(
      self, params: types.Params, weight_types: Mapping[int, str]
  ) -> accuracy.Scores:
    """Scores all questions with activations rounded as in llama.cpp.

    Args:
      params: Decoded weights.
      weight_types: See `activations.with_rounded_inputs`.

    Returns:
      Scores in the order of the questions.
    """
    forward = activations.with_rounded_inputs(self._forward, weight_types)
    return accuracy.score(
        scoring.Scorer(forward, self._unembed), params, self._task)

  def _forward(self, params, tokens, positions, mask):
    return decoder.forward(
        self.model.config, params, tokens, positions=positions,
        attention_mask=mask)

  def quantize(self, scheme: str) -> types.Params:
    """Quantizes and decodes the model's weights.

    Args:
      scheme: Name of a scheme of `quant`.

    Returns:
      Params with decoded matrices.

    Raises:
      ValueError: The scheme does not fit the model's matrices.
    """
    return quant.fake_quantize(self.model.params, scheme, self._layout)


def count_differing_weights(
    first: types.Params, second: types.Params, config: config_lib.ModelConfig
) -> dict[str, int]:
  """Counts differences between the quantized matrices of two models.

  Zeros of different sign are equal.

  Args:
    first: Decoded params.
    second: Decoded params of the same shape.
    config: Config of both models.

  Returns:
    `differing`, the number of different weights, and `of`, the number of
    weights in quantized matrices.
  """
  layout = model_layout.block_layout(config)
  total = lambda count: int(np.sum(jax.tree.leaves(jax.tree.map(
      lambda a, b, part: 0 if part is None else count(a, b),
      first, second, layout))))
  return {'differing': total(lambda a, b: int((a != b).sum())),
          'of': total(lambda a, b: a.size)}
