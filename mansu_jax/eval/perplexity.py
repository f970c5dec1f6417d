"""Perplexity of general text, by kind of text.

Documents are cut into windows that overlap by one token, so each token except
a document's first is predicted once. A window's tokens do not attend to text
before the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import math

import numpy as np

from mansu_jax import types
from mansu_jax.data import batching
from mansu_jax.data import packing
from mansu_jax.data import tokenization
from mansu_jax.data.readers import text as text_lib
from mansu_jax.eval import scoring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """Windows packed for scoring; built once for all models.

  Attributes:
    kinds: Kind of text of each window.
    batches: Packed windows without their last tokens.
    positions: All input positions [m] of each window.
    targets: Next tokens [m, 1] of each window.
  """

  kinds: tuple[str, ...]
  batches: list[packing.PackedBatch]
  positions: list[np.ndarray]
  targets: list[np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLoss:
  """Loss on text of one kind, or of several kinds together.

  Attributes:
    window_nll: [w] float64, summed negative log-probability in nats.
    window_tokens: [w] int, number of predicted tokens.

  Example:
    >>> loss = TextLoss(
    ...     window_nll=np.array([2.0, 4.0]), window_tokens=np.array([2, 4]))
    >>> round(loss.perplexity, 3)
    2.718
  """

  window_nll: np.ndarray
  window_tokens: np.ndarray

  @property
  def nll(self) -> float:
    """Summed negative log-probability in nats."""
    return float(self.window_nll.sum())

  @property
  def tokens(self) -> int:
    """Number of predicted tokens."""
    return int(self.window_tokens.sum())

  @property
  def perplexity(self) -> float:
    """exp(nats per token); infinity on overflow."""
    mean = self.nll / self.tokens
    return math.exp(mean) if mean < 700 else math.inf


def build_task(
    documents: Sequence[text_lib.TextDocument],
    tokenizer: tokenization.Tokenizer, *, window: int, max_windows: int = 0,
    token_budget: int = packing.TOKEN_BUDGET,
    max_length: int | None = None) -> Task:
  """Encodes, cuts and packs documents.

  Args:
    documents: Texts; without any, the task has no windows.
    tokenizer: A transformers tokenizer.
    window: Tokens per window.
    max_windows: Most windows per kind of text, evenly spaced; 0 takes all.
    token_budget: See `packing.pack_segments`.
    max_length: Longest position that the model supports, or None.

  Raises:
    ValueError: the window is too short or too long, or a kind of text has
      nothing to predict.
  """
  kinds, windows = [], []
  for kind, group in text_lib.by_kind(list(documents)).items():
    found = batching.text_windows(group, tokenizer, window)
    found = _thin(found, max_windows)
    windows += found
    kinds += [kind] * len(found)
  segments = [_causal(ids[:-1]) for ids in windows]
  longest = max((len(s.tokens) for s in segments), default=1)
  batches = packing.pack_segments(
      segments, row_length=packing.round_up(longest), token_budget=token_budget,
      max_length=max_length)
  return Task(
      kinds=tuple(kinds), batches=batches,
      positions=[s.positions for s in segments],
      targets=[np.array(ids[1:], np.int32)[:, None] for ids in windows])


def _thin(windows: list[list[int]], most: int) -> list[list[int]]:
  """Selects at most `most` evenly spaced windows; 0 selects all."""
  if not most or len(windows) <= most:
    return windows
  chosen = np.linspace(0, len(windows) - 1, most).round().astype(int)
  return [windows[i] for i in chosen]


def _causal(ids: list[int]) -> packing.Segment:
  """A segment whose tokens attend to themselves and earlier tokens."""
  k = len(ids)
  return packing.Segment(
      np.array(ids, np.int32), np.arange(k, dtype=np.int32),
      np.tril(np.ones((k, k), bool)))


def score(
    scorer: scoring.Scorer, params: types.Params, task: Task,
    cache: scoring.HiddenCache | None = None) -> dict[str, TextLoss]:
  """Computes the loss of each kind of text, in the order of the documents.

  Args:
    scorer: Compiled functions, shared by all models of one shape.
    params: Params of the model.
    task: Packed windows.
    cache: See `scoring.Scorer.logprobs`.

  Raises:
    ValueError: a log-probability is not finite.
  """
  found = scorer.logprobs(
      params, task.batches, task.positions, task.targets, cache)
  nll = np.array([-table.sum(dtype=np.float64) for table in found])
  if not np.isfinite(nll).all():
    bad = task.kinds[int(np.argmin(np.isfinite(nll)))]
    raise ValueError(
        f'The loss on text of kind {bad!r} is not finite; wanted finite'
        ' log-probabilities. Weights or activations overflow. Check the'
        ' training loss, or lower the learning rate.')
  tokens = np.array([len(table) for table in found], int)
  kinds = np.array(task.kinds)
  return {
      kind: TextLoss(
          window_nll=nll[kinds == kind], window_tokens=tokens[kinds == kind])
      for kind in dict.fromkeys(task.kinds)}


def pool(losses: Iterable[TextLoss]) -> TextLoss:
  """Pools several kinds of text; all tokens have equal weight.

  Raises:
    ValueError: there is no loss.
  """
  losses = list(losses)
  if not losses:
    raise ValueError(
        'Perplexity got no text; wanted at least one kind. Give text files that'
        ' training does not use.')
  return TextLoss(
      window_nll=np.concatenate([x.window_nll for x in losses]),
      window_tokens=np.concatenate([x.window_tokens for x in losses]))
