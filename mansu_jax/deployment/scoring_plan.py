"""Plain sequences that score multiple-choice questions in any engine.

A choice is scored by one sequence: its prompt and all its tokens but the last,
as a user of a deployed model would run it. The plan uses neither packing nor
attention masks, so it shares nothing with the simulator's evaluation but the
token ids. Choices with the same sequence, such as choices of one token, share
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.eval import accuracy


class Request(NamedTuple):
  """A sequence, and the next tokens to score in it.

  Attributes:
    tokens: Token ids of the sequence.
    positions: [m] int, positions whose next token is scored.
    targets: [m] int, token ids to score at these positions.
  """

  tokens: tuple[int, ...]
  positions: np.ndarray
  targets: np.ndarray


# Requests -> log-probabilities [m] (nats) of the targets of each request.
Engine = Callable[[Sequence[Request]], list[np.ndarray]]

# Sequence -> (position, target) -> index among the sequence's targets.
_Wanted = dict[tuple[int, ...], dict[tuple[int, int], int]]


class ScoringPlan:
  """Requests that score all choices of all questions.

  Attributes:
    requests: Distinct requests, in order of first use.
  """

  def __init__(
      self, questions: Sequence[questions_lib.Question],
      tokenizer: tokenization.Tokenizer, *, chat: bool = False):
    """Encodes the questions.

    Args:
      questions: n questions.
      tokenizer: See `tokenization`.
      chat: Whether prompts use the tokenizer's chat template.

    Raises:
      ValueError: See `tokenization.encode_questions`.
    """
    self._questions = questions
    wanted: _Wanted = {}
    cells = [
        [_add_choice(wanted, encoded.prompt, choice)
         for choice in encoded.choices]
        for encoded in tokenization.encode_questions(
            questions, tokenizer, chat=chat)]
    order = {tokens: i for i, tokens in enumerate(wanted)}
    # Per question and choice: request, and indices of its targets.
    self._cells = [[(order[tokens], targets) for tokens, targets in choices]
                   for choices in cells]
    self.requests = [
        Request(tokens, *np.array(list(targets)).T)
        for tokens, targets in wanted.items()]

  def score(self, engine: Engine) -> accuracy.Scores:
    """Scores all choices by an engine.

    Args:
      engine: Function that scores requests.

    Returns:
      Scores in the order of the questions.

    Raises:
      ValueError: A score is not finite.
    """
    table = engine(self.requests)
    most = max(map(len, self._cells))
    logprob = np.full((len(self._cells), most), -np.inf)
    for i, choices in enumerate(self._cells):
      row = [np.sum(table[request][targets], dtype=np.float64)
             for request, targets in choices]
      if not np.isfinite(row).all():
        raise ValueError(
            f'The choices of question {self._questions[i].id!r} score'
            f' {np.array(row)}; wanted finite log-probabilities. The quantized'
            ' model overflows.')
      logprob[i, :len(row)] = row
    return accuracy.judge(self._questions, logprob)


def _add_choice(
    wanted: _Wanted, prompt: Sequence[int], choice: Sequence[int]
) -> tuple[tuple[int, ...], list[int]]:
  """Adds one choice to `wanted`; returns its sequence and target indices."""
  tokens = (*prompt, *choice[:-1])
  targets = wanted.setdefault(tokens, {})
  start = len(prompt) - 1
  return tokens, [targets.setdefault((start + i, target), len(targets))
                  for i, target in enumerate(choice)]


def make_batches(
    requests: Sequence[Request], max_tokens: int, max_requests: int
) -> list[list[int]]:
  """Groups requests of similar length, longest first.

  Args:
    requests: Requests of any lengths.
    max_tokens: Tokens per padded batch. A longer request gets its own batch.
    max_requests: Requests per batch.

  Returns:
    Indices of the requests of each batch.
  """
  out, room = [], 0
  order = np.argsort([-len(r.tokens) for r in requests], kind='stable')
  for i in order.tolist():
    if len(out[-1] if out else ()) >= room:
      out.append([])
      room = min(max_requests, max(1, max_tokens // len(requests[i].tokens)))
    out[-1].append(i)
  return out


def score_in_batches(
    requests: Sequence[Request], score: Engine, *, max_tokens: int,
    max_requests: int) -> list[np.ndarray]:
  """Scores requests batch by batch.

  Args:
    requests: Requests of any lengths.
    score: Function that scores one batch.
    max_tokens: See `make_batches`.
    max_requests: See `make_batches`.

  Returns:
    Log-probabilities [m] of each request, in the order of `requests`.
  """
  out: list[np.ndarray] = [np.zeros(0)] * len(requests)
  for batch in make_batches(requests, max_tokens, max_requests):
    for i, found in zip(batch, score([requests[i] for i in batch])):
      out[i] = found
  return out
