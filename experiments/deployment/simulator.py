"""The simulator: mansu_jax's decoder on weights that were decoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.deployment import activations
from mansu_jax import quant
from mansu_jax import types
from mansu_jax.data import questions as questions_lib
from mansu_jax.eval import accuracy
from mansu_jax.eval import scoring
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.models import layout as model_layout


class Simulator:
  """Scores any params of one shape, as a run's evaluation does."""

  def __init__(
      self, model: Any, questions: Sequence[questions_lib.Question], *,
      chat: bool = False):
    """Packs the questions.

    Args:
      model: a `loading.LoadedModel`, in full precision.
      questions: what is asked.
      chat: whether in the tokenizer's chat form.
    """
    self.model = model
    self._layout = model_layout.block_layout(model.config)
    self._task = accuracy.build_task(
        questions, model.tokenizer, chat=chat,
        max_length=model.config.max_position)
    self._scorer = scoring.Scorer(self._forward, decoder.unembed)

  def __call__(self, params: types.Params) -> accuracy.Scores:
    return accuracy.score(self._scorer, params, self._task)

  def with_rounded_activations(
      self, params: types.Params, weight_types: Mapping[int, str]
  ) -> accuracy.Scores:
    """Scores with activations as llama.cpp rounds them.

    Args:
      params: decoded weights.
      weight_types: see `activations.rounded`.
    """
    forward = activations.rounded(self._forward, weight_types)
    return accuracy.score(
        scoring.Scorer(forward, decoder.unembed), params, self._task)

  def _forward(self, params, tokens, positions, mask):
    return decoder.forward(
        self.model.config, params, tokens, positions=positions,
        attention_mask=mask)

  def quantized(self, scheme: str) -> types.Params:
    """The model's weights as `scheme` stores them.

    Raises:
      ValueError: the scheme does not fit the model's matrices.
    """
    return quant.fake_quantize(self.model.params, scheme, self._layout)


def weights_differing(
    one: types.Params, other: types.Params, config: config_lib.ModelConfig
) -> dict[str, int]:
  """How many weights differ, `of` how many: of those that are quantized.

  Zeros of either sign are alike.
  """
  layout = model_layout.block_layout(config)
  over = lambda fn: int(np.sum(jax.tree.leaves(jax.tree.map(
      lambda a, b, part: 0 if part is None else fn(a, b),
      one, other, layout))))
  return {'differing': over(lambda a, b: int((a != b).sum())),
          'of': over(lambda a, b: a.size)}
