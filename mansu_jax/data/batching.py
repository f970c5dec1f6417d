"""Encodes training sequences, lays out questions to score, samples batches.

`packing` places the results in rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mansu_jax.data import packing
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import text as text_lib


class Sequences(NamedTuple):
  """Right-padded token sequences; every array has leading axis n."""

  tokens: np.ndarray  # [n, T] int32, zero at padding
  length: np.ndarray  # [n] int32
  answer_mask: np.ndarray  # [n, T] bool, True where the next token is scored

  def take(self, index: np.ndarray) -> Sequences:
    """Selects sequences; the padded length stays."""
    return Sequences(*(leaf[index] for leaf in self))


class PackedQuestion(NamedTuple):
  """A prompt followed by the choice tokens that must be inputs.

  The last token of a choice is never an input, and choices share their common
  prefixes. So four one-token choices cost nothing beyond the prompt.

  Attributes:
    segment: Tokens of the prompt and of the choice prefixes.
    predictors: For each choice, the segment position that predicts each of its
      tokens.
    targets: For each choice, its token ids.
  """

  segment: packing.Segment
  predictors: list[list[int]]
  targets: list[list[int]]


def pad_sequences(
    ids: Sequence[Sequence[int]], *, multiple: int = packing.MULTIPLE,
    room: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Right-pads sequences with zeros to one length.

  Args:
    ids: n token id lists.
    multiple: The padded length is a multiple of this.
    room: Padding positions after the longest sequence, at least.

  Returns:
    tokens [n, T] int32 and mask [n, T] bool, True at real tokens.

  Raises:
    ValueError: there is no sequence.

  Example:
    >>> tokens, mask = pad_sequences([[5, 6, 7], [8]], multiple=4)
    >>> tokens
    array([[5, 6, 7, 0],
           [8, 0, 0, 0]], dtype=int32)
    >>> mask.sum(1)
    array([3, 1])
  """
  if not ids:
    raise ValueError(
        'Padding got no sequence; wanted at least one. Check that the data set'
        ' is not empty.')
  lengths = [len(sequence) for sequence in ids]
  width = packing.round_up(max(1, *lengths) + room, multiple)
  layout = packing.lay_out(
      lengths, packing.one_per_row(lengths, width), (len(ids), width))
  return layout.write(ids), np.arange(width) < np.array(lengths)[:, None]


def encode_sequences(
    questions: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, *, chat: bool = False) -> Sequences:
  """Encodes the prompt and the right answer of each question.

  Args:
    questions: n questions.
    tokenizer: A transformers tokenizer.
    chat: Whether to apply the chat template.

  Returns:
    Sequences whose `answer_mask` is True where the next token is an answer
    token: from prompt length - 1 up to the last position but one.

  Raises:
    ValueError: there are no questions, or an answer has no tokens.
  """
  encoded = tokenization.encode_questions(questions, tokenizer, chat=chat)
  answers = [e.choices[q.answer_index] for q, e in zip(questions, encoded)]
  ids = [e.prompt + answer for e, answer in zip(encoded, answers)]
  tokens, mask = pad_sequences(ids)
  length = mask.sum(1).astype(np.int32)
  start = np.array([len(e.prompt) - 1 for e in encoded])[:, None]
  position = np.arange(tokens.shape[1])[None]
  answer_mask = (position >= start) & (position < length[:, None] - 1)
  return Sequences(tokens, length, answer_mask)


def text_windows(
    documents: Sequence[text_lib.TextDocument],
    tokenizer: tokenization.Tokenizer, window: int) -> list[list[int]]:
  """Cuts documents into windows that overlap by one token.

  Because of the overlap, each token except a document's first is predicted
  exactly once.

  Args:
    documents: Texts to cut.
    tokenizer: A transformers tokenizer.
    window: Most tokens per window, at least 2.

  Returns:
    Token ids of each window, in document order.

  Raises:
    ValueError: `window` is less than 2, or no text has two tokens.
  """
  if window < 2:
    raise ValueError(
        f'The text window is {window} tokens; wanted at least 2: one input and'
        ' one to predict. Increase it.')
  start = tokenization.prefix_ids(tokenizer)
  windows = []
  for ids in tokenization.encode([d.text for d in documents], tokenizer):
    ids = start + ids
    windows += [
        ids[i:i + window] for i in range(0, len(ids) - 1, window - 1)]
  if not windows:
    raise ValueError(
        f'None of the {len(documents)} text documents has two tokens; wanted'
        ' text to predict. Check the text files.')
  return windows


def encode_text(
    documents: Sequence[text_lib.TextDocument],
    tokenizer: tokenization.Tokenizer, window: int) -> Sequences:
  """Encodes windows of general text; every next token is scored.

  Args:
    documents: Texts; no window spans two of them.
    tokenizer: A transformers tokenizer.
    window: Tokens per window. A document's last window may be shorter.

  Returns:
    Sequences in document order.

  Raises:
    ValueError: as `text_windows`.
  """
  tokens, mask = pad_sequences(text_windows(documents, tokenizer, window))
  length = mask.sum(1).astype(np.int32)
  scored = np.arange(tokens.shape[1])[None] < length[:, None] - 1
  return Sequences(tokens, length, scored)


def pack_choices(encoded: tokenization.Encoded) -> PackedQuestion:
  """Lays out a prompt and its choices as a prefix tree of tokens.

  Args:
    encoded: Token ids of the prompt and its choices.

  Returns:
    A segment with the prompt and, for each distinct proper prefix of a choice,
    its last token. That token attends to the prompt and to its own prefix. The
    positions of every choice continue from the prompt.

  Example:
    >>> packed = pack_choices(tokenization.Encoded([5, 6], [[7, 8], [7, 9]]))
    >>> packed.segment.tokens
    array([5, 6, 7], dtype=int32)
    >>> packed.predictors  # Position 1 predicts 7; position 2 predicts 8 or 9.
    [[1, 2], [1, 2]]
  """
  prompt, choices = encoded
  nodes = {(): len(prompt) - 1}  # Prefix of a choice -> segment position.
  for choice in choices:
    for i in range(1, len(choice)):
      nodes.setdefault(tuple(choice[:i]), len(prompt) + len(nodes) - 1)
  total = len(prompt) + len(nodes) - 1
  tokens, positions = np.zeros((2, total), np.int32)
  visible = np.tril(np.ones((total, total), bool))
  visible[:, len(prompt):] = False
  tokens[:len(prompt)] = prompt
  positions[:len(prompt)] = np.arange(len(prompt))
  for prefix, index in nodes.items():
    if prefix:
      tokens[index] = prefix[-1]
      positions[index] = len(prompt) + len(prefix) - 1
      for i in range(1, len(prefix) + 1):
        visible[index, nodes[prefix[:i]]] = True
  predictors = [
      [nodes[tuple(c[:i])] for i in range(len(c))] for c in choices]
  segment = packing.Segment(tokens, positions, visible)
  return PackedQuestion(segment, predictors, [list(c) for c in choices])


class BatchSampler:
  """Samples batches of indices without replacement, epoch by epoch.

  `sampler[step]` depends on the step and the seed only, so a resumed run gets
  the same batches. Each epoch has its own permutation; a batch may span two
  epochs.

  Example:
    >>> sampler = BatchSampler(n=4, batch=2, seed=0)
    >>> sorted(np.concatenate([sampler[0], sampler[1]]).tolist())
    [0, 1, 2, 3]
  """

  def __init__(self, n: int, batch: int, seed: int):
    """Creates a sampler.

    Args:
      n: Number of examples.
      batch: Indices per step.
      seed: Seed of the permutations.

    Raises:
      ValueError: `n` or `batch` is not positive.
    """
    if n < 1 or batch < 1:
      raise ValueError(
          f'The sampler got n={n} and batch={batch}; wanted both positive.'
          ' Check the data set and the batch size.')
    self.n, self.batch, self.seed = n, batch, seed

  def _epoch(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self.seed, epoch)).permutation(self.n)

  def __getitem__(self, step: int) -> np.ndarray:
    """Indices [batch] int64 of a step >= 0."""
    if step < 0:
      raise IndexError(f'Step {step} is negative; wanted 0 or more.')
    drawn = np.arange(step * self.batch, (step + 1) * self.batch)
    epochs = drawn // self.n
    orders = {e: self._epoch(e) for e in np.unique(epochs).tolist()}
    return np.array([
        orders[e][i] for e, i in zip(epochs.tolist(), drawn % self.n)])


class FavouringSampler:
  """Samples a fixed part of each batch from favoured examples.

  The rest is sampled from all examples, including the favoured ones.
  """

  def __init__(
      self, n: int, batch: int, seed: int, *, favoured: np.ndarray,
      part: int):
    """Creates a sampler.

    Args:
      n: Number of examples.
      batch: Indices per step.
      seed: Seed of both parts.
      favoured: Indices [m] of the favoured examples.
      part: Favoured indices per step, 0 < part < batch.
    """
    self._favoured = np.asarray(favoured)
    self._part = BatchSampler(self._favoured.size, part, seed)
    self._all = BatchSampler(n, batch - part, seed)

  def __getitem__(self, step: int) -> np.ndarray:
    """Indices [batch] int64 of a step >= 0, the favoured part first."""
    return np.concatenate(
        [self._favoured[self._part[step]], self._all[step]])
