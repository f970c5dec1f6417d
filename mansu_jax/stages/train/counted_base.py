"""Counts what training asks of the base, for plans."""

from __future__ import annotations

import collections

import numpy as np

from mansu_jax.eval import generation
from mansu_jax.models import config as model_config
from mansu_jax.stages.train import pools


class CountedBase:
  """A base that answers nothing, and counts what training asks of it.

  Attributes:
    rows: how often it runs packed rows of each shape.
    slices_of_logits: how many slices give the priors of the answers.
    written: batches of prompts that it continues.
  """

  def __init__(self, config: model_config.ModelConfig):
    self._config = config
    self.rows: collections.Counter = collections.Counter()
    self.slices_of_logits = 0
    self.written: list[generation.Batch] = []

  def reference(self) -> pools.Reference:
    """What training asks."""
    return pools.Reference(
        hidden=self._hidden, probabilities=self._probabilities, nll=self._nll,
        write=self._write)

  def _hidden(self, tokens, positions, segments):
    del positions, segments
    self.rows[tokens.shape] += 1
    return np.zeros((*tokens.shape, self._config.d_model), np.float32)

  def _probabilities(self, states):
    size = self._config.vocab_size
    return np.full((len(states), size), 1 / size, np.float32)

  def _nll(self, states, labels):
    del states
    self.slices_of_logits += -(-len(labels) // pools.LOGITS)
    return np.zeros(len(labels), np.float32)

  def _write(self, prompts, most):
    self.written += generation.batches(prompts, most)
    return [[self._config.vocab_size - 1] * most] * len(prompts)
