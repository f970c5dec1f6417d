"""Questions whose choices differ in their first tokens, for the lens.

The questions are the forget set's untrained phrasings; the lens is fitted on
retain questions.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from mansu_jax import types
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization
from mansu_jax.erasure import lens
from mansu_jax.erasure import suppression
from mansu_jax.models import config as model_config
from mansu_jax.stages.prepare import inputs as inputs_lib

_LEAST = 8  # Fewer questions say nothing about layers.


class NothingToRead(ValueError):
  """There are too few questions, or too few to fit a lens on."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
  """The questions and the prompts that the lens is fitted on.

  Attributes:
    fit: token ids of the retain prompts that the lens is fitted on.
    prompts: token ids of the m questions' prompts.
    asked: first tokens of their choices.
    facts: fact of each question, [m].
    left_out: number of questions left out for choices with one first token.
  """

  fit: list[list[int]]
  prompts: list[list[int]]
  asked: suppression.Asked
  facts: np.ndarray
  left_out: int

  def states(
      self, config: model_config.ModelConfig, params: types.Params
  ) -> tuple[lens.States, lens.States]:
    """A model's states at the ends of `fit`, and of `prompts`."""
    found = lens.states(config, params, self.fit + self.prompts)
    size = len(self.fit)
    return found.take(slice(0, size)), found.take(slice(size, None))


def choose(
    inputs: inputs_lib.Inputs, tokenizer: types.Tokenizer, *, limit: int,
    seed: int, chat: bool) -> Questions:
  """Chooses the questions, and `limit` retain questions for the lens.

  Raises:
    NothingToRead: too few of either.
  """
  if not limit:
    raise NothingToRead('--eval_lens_questions=0 skips it')
  fit = inputs_lib.thin(inputs.splits.retain_train, limit, seed)
  asked = [q for split in splits_lib.FORGOTTEN
           for q in inputs.evaluation.get(split, ())]
  _check_enough(fit, 'retain questions (use train) to fit a lens on')
  _check_enough(asked, 'forget questions (use near or far)')
  encode = functools.partial(
      tokenization.encode_questions, tokenizer=tokenizer, chat=chat)
  encoded = encode(asked)
  first = [[ids[0] for ids in e.choices] for e in encoded]
  distinct = [i for i, row in enumerate(first) if len(set(row)) == len(row)]
  _check_enough(distinct, 'forget questions (use near or far) whose choices'
                ' differ in their first tokens')
  facts = np.array([asked[i].fact for i in distinct])
  if len(set(facts.tolist())) < 2:
    raise NothingToRead(
        f'its {len(distinct)} forget questions (use near or far) ask about one'
        ' fact; guessing accuracy needs at least two')
  width = max(len(first[i]) for i in distinct)
  rows = [first[i] + first[i][:1] * (width - len(first[i])) for i in distinct]
  return Questions(
      fit=[list(e.prompt) for e in encode(fit)],
      prompts=[list(encoded[i].prompt) for i in distinct],
      asked=suppression.Asked(
          np.array(rows, np.int32),
          np.array([asked[i].answer_index for i in distinct], np.int32),
          np.array([len(first[i]) for i in distinct], np.int32)),
      facts=facts, left_out=len(asked) - len(distinct))


def _check_enough(found: Sequence[Any], what: str) -> None:
  if len(found) < _LEAST:
    raise NothingToRead(
        f'there are {len(found)} {what}; wanted at least {_LEAST}')
