"""Training sequences, right-padded, and the order in which they are seen.

Packing for evaluation, where no gradient is taken, is in `packing.py`; the
packed form of one question is made here.
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

  tokens: np.ndarray  # [n, T] int32, zero at padding.
  length: np.ndarray  # [n] int32
  answer_mask: np.ndarray  # [n, T] bool: predicting t + 1 from t is scored.

  def take(self, index: np.ndarray) -> Sequences:
    """The sequences at `index`, padding length unchanged."""
    return Sequences(*(leaf[index] for leaf in self))


class PackedQuestion(NamedTuple):
  """A prompt once, followed by the choice tokens that must be inputs.

  The last token of a choice is never an input, and choices that begin alike
  share those tokens, so four one-token choices cost nothing beyond the prompt.
  """

  segment: packing.Segment
  predictors: list[list[int]]  # Per choice and token: who predicts it.
  targets: list[list[int]]  # Per choice: its token ids.


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
  """Prompt and right answer of each question.

  Args:
    questions: n questions.
    tokenizer: see `tokenization`.
    chat: whether to use the chat template.

  Returns:
    Sequences whose `answer_mask` is True at positions whose next token is an
    answer token: prompt length - 1 up to the last but one.

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
  """Token windows of at most `window`, overlapping by one token.

  The overlap lets every token but a document's first be predicted just once.

  Raises:
    ValueError: the window is shorter than 2, or no text has two tokens.
  """
  if window < 2:
    raise ValueError(
        f'The text window is {window} tokens; wanted at least 2, one to see'
        ' and one to predict. Enlarge it.')
  start = tokenization.prefix_ids(tokenizer)
  windows = []
  for ids in tokenization.encode([d.text for d in documents], tokenizer):
    ids = start + ids
    windows += [
        ids[i:i + window] for i in range(0, len(ids) - 1, window - 1)]
  if not windows:
    raise ValueError(
        f'The {len(documents)} text documents hold no two tokens in a row;'
        ' wanted some text to predict. Check the text files.')
  return windows


def encode_text(
    documents: Sequence[text_lib.TextDocument],
    tokenizer: tokenization.Tokenizer, window: int) -> Sequences:
  """Windows of general text; every next token is scored.

  Args:
    documents: texts, each cut by itself.
    tokenizer: see `tokenization`.
    window: tokens a window; the last of a document may be shorter.

  Returns:
    Sequences in document order.
  """
  tokens, mask = pad_sequences(text_windows(documents, tokenizer, window))
  length = mask.sum(1).astype(np.int32)
  scored = np.arange(tokens.shape[1])[None] < length[:, None] - 1
  return Sequences(tokens, length, scored)


def pack_choices(encoded: tokenization.Encoded) -> PackedQuestion:
  """Lays out a prompt and its choices as a tree of tokens.

  Args:
    encoded: token ids of prompt and choices.

  Returns:
    A segment of the prompt and, for each distinct beginning of a choice
    (without its last token), one token that sees the prompt and its own
    beginnings; positions continue from the prompt for every choice.
  """
  prompt, choices = encoded
  nodes = {(): len(prompt) - 1}  # Beginning of a choice -> place in segment.
  for choice in choices:
    for i in range(1, len(choice)):
      nodes.setdefault(tuple(choice[:i]), len(prompt) + len(nodes) - 1)
  total = len(prompt) + len(nodes) - 1
  tokens, positions = np.zeros((2, total), np.int32)
  visible = np.tril(np.ones((total, total), bool))
  visible[:, len(prompt):] = False
  tokens[:len(prompt)] = prompt
  positions[:len(prompt)] = np.arange(len(prompt))
  for beginning, place in nodes.items():
    if beginning:
      tokens[place] = beginning[-1]
      positions[place] = len(prompt) + len(beginning) - 1
      for i in range(1, len(beginning) + 1):
        visible[place, nodes[beginning[:i]]] = True
  predictors = [
      [nodes[tuple(c[:i])] for i in range(len(c))] for c in choices]
  segment = packing.Segment(tokens, positions, visible)
  return PackedQuestion(segment, predictors, [list(c) for c in choices])


class BatchSampler:
  """Batches of indices, epoch by epoch, as a function of the step alone.

  `sampler[step]` needs no history, so a resumed run sees the same batches.
  Every epoch is a permutation of its own; a batch may span two epochs.
  """

  def __init__(self, n: int, batch: int, seed: int):
    """Creates a sampler of `batch` indices out of `n` for each step.

    Raises:
      ValueError: `n` or `batch` is not positive.
    """
    if n < 1 or batch < 1:
      raise ValueError(
          f'A sampler over {n} examples in batches of {batch} is empty; wanted'
          ' both positive. Check the data set and the batch size.')
    self.n, self.batch, self.seed = n, batch, seed

  def _epoch(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self.seed, epoch)).permutation(self.n)

  def __getitem__(self, step: int) -> np.ndarray:
    """Indices [batch] int64 of a step >= 0."""
    if step < 0:
      raise IndexError(f'Step {step} is negative; wanted 0 or more.')
    places = np.arange(step * self.batch, (step + 1) * self.batch)
    epochs = places // self.n
    orders = {e: self._epoch(e) for e in np.unique(epochs).tolist()}
    return np.array([
        orders[e][p] for e, p in zip(epochs.tolist(), places % self.n)])


class FavouringSampler:
  """Batches of which a fixed part is drawn from favoured examples.

  The other part is drawn from all examples, the favoured ones too.
  """

  def __init__(
      self, n: int, batch: int, seed: int, *, favoured: np.ndarray,
      part: int):
    """Creates a sampler.

    Args:
      n: examples in all.
      batch: indices a step.
      seed: of both parts.
      favoured: indices [m] of the favoured examples.
      part: how many indices of a batch are drawn from them, 0 < part < batch.
    """
    self._favoured = np.asarray(favoured)
    self._some = BatchSampler(self._favoured.size, part, seed)
    self._all = BatchSampler(n, batch - part, seed)

  def __getitem__(self, step: int) -> np.ndarray:
    """Indices [batch] int64 of a step >= 0, the favoured part first."""
    return np.concatenate(
        [self._favoured[self._some[step]], self._all[step]])
