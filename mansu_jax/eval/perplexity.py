"""Perplexity of general text, kind by kind.

Documents are cut in windows that overlap by one token, so each token but a
document's first is predicted once; what lies before a window is not seen.
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
  """Windows packed for scoring; made once, scored for every model.

  Attributes:
    kinds: per window, the kind of its text.
    batches: the packed windows without their last token.
    positions: per window [m], all its input positions.
    targets: per window [m, 1], the tokens that follow.
  """

  kinds: tuple[str, ...]
  batches: list[packing.PackedBatch]
  positions: list[np.ndarray]
  targets: list[np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLoss:
  """Loss on text of one kind (or of several together).

  Attributes:
    window_nll: [w] float64, summed negative log-probability in nats.
    window_tokens: [w] int, predicted tokens.
  """

  window_nll: np.ndarray
  window_tokens: np.ndarray

  @property
  def nll(self) -> float:
    """Nats over all predicted tokens."""
    return float(self.window_nll.sum())

  @property
  def tokens(self) -> int:
    """Number of predicted tokens."""
    return int(self.window_tokens.sum())

  @property
  def perplexity(self) -> float:
    """exp(nats a token); infinite where that overflows."""
    mean = self.nll / self.tokens
    return math.exp(mean) if mean < 700 else math.inf


def build_task(
    documents: Sequence[text_lib.TextDocument],
    tokenizer: tokenization.Tokenizer, *, window: int, max_windows: int = 0,
    token_budget: int = packing.TOKEN_BUDGET,
    max_length: int | None = None) -> Task:
  """Encodes, cuts and packs documents.

  Args:
    documents: texts; none gives a task without windows.
    tokenizer: see `tokenization`.
    window: tokens a window.
    max_windows: most windows of a kind, spread evenly over it; 0 takes all.
    token_budget: see `packing.pack_segments`.
    max_length: longest position that the model knows, or None.

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
  if not most or len(windows) <= most:
    return windows
  chosen = np.linspace(0, len(windows) - 1, most).round().astype(int)
  return [windows[i] for i in chosen]


def _causal(ids: list[int]) -> packing.Segment:
  k = len(ids)
  return packing.Segment(
      np.array(ids, np.int32), np.arange(k, dtype=np.int32),
      np.tril(np.ones((k, k), bool)))


def score(
    scorer: scoring.Scorer, params: types.Params, task: Task,
    kept: scoring.Kept | None = None) -> dict[str, TextLoss]:
  """Loss of every kind of text, in the order of the documents.

  Args:
    scorer: compiled functions, shared by all models of one shape.
    params: the model.
    task: packed windows.
    kept: see `scoring.Scorer.logprobs`.

  Raises:
    ValueError: a log-probability is not finite, so the model is broken.
  """
  found = scorer.logprobs(
      params, task.batches, task.positions, task.targets, kept)
  nll = np.array([-table.sum(dtype=np.float64) for table in found])
  if not np.isfinite(nll).all():
    bad = task.kinds[int(np.argmin(np.isfinite(nll)))]
    raise ValueError(
        f'The loss on text of kind {bad!r} is not finite; wanted finite'
        ' log-probabilities. The weights or activations overflow: look at the'
        ' training loss, or lower the learning rate.')
  tokens = np.array([len(table) for table in found], int)
  kinds = np.array(task.kinds)
  return {
      kind: TextLoss(
          window_nll=nll[kinds == kind], window_tokens=tokens[kinds == kind])
      for kind in dict.fromkeys(task.kinds)}


def pool(losses: Iterable[TextLoss]) -> TextLoss:
  """Several kinds as one text, each token counting alike.

  Raises:
    ValueError: there is no loss.
  """
  losses = list(losses)
  if not losses:
    raise ValueError(
        'There is no text to take the perplexity of; wanted at least one kind.'
        ' Give text files that training does not see.')
  return TextLoss(
      window_nll=np.concatenate([x.window_nll for x in losses]),
      window_tokens=np.concatenate([x.window_tokens for x in losses]))
