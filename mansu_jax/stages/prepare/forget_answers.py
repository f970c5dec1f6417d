"""How likely the base is to say a forgotten answer after a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mansu_jax import types
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import subjects as subjects_lib
from mansu_jax.data import tokenization

# The base's final states [m, D] -> its next-token probabilities [m, V].
NextTokenFn = Callable[[np.ndarray], np.ndarray]

_ROWS = 64  # States in a batch.


def key(subject: str) -> tuple[str, ...]:
  """A subject without spelling variants, as a key."""
  return tuple(subjects_lib.words(subject))


class ForgetAnswers:
  """The forget answers of each subject, by their first tokens."""

  def __init__(
      self, questions: Sequence[questions_lib.Question],
      tokenizer: types.Tokenizer, next_token: NextTokenFn, *, chat: bool):
    """Finds the answers.

    Args:
      questions: Training questions of the forget set.
      tokenizer: Tokenizer of the model.
      next_token: The base's next-token probabilities.
      chat: Whether the chat template applies.
    """
    self._next_token = next_token
    self._of: dict[tuple[str, ...], dict[int, questions_lib.Question]] = {}
    for question, encoded, subject in zip(
        questions,
        tokenization.encode_questions(questions, tokenizer, chat=chat),
        subjects_lib.of_questions(questions)):
      if subject is not None:
        self._of.setdefault(key(subject), {}).setdefault(
            encoded.choices[question.answer_index][0], question)

  def of(self, subject: str) -> Mapping[int, questions_lib.Question]:
    """A question of each answer of the subject, by first token; {} if none."""
    return self._of.get(key(subject), {})

  def likeliest(
      self, states: np.ndarray, subjects: Sequence[str]
  ) -> tuple[np.ndarray, list[questions_lib.Question | None]]:
    """The likeliest forget answer in each state.

    Args:
      states: The base's final states, [n, D].
      subjects: What each of the n texts is about.

    Returns:
      The base's probability of it [n], and a question about its fact for each
      state. It is an answer of the state's subject or, if this has none, any;
      then the question is None.
    """
    size = len(subjects)
    # A multiple of the batch size, so that one program serves all batches.
    states = np.pad(states, ((0, -size % _ROWS), (0, 0)))
    likely, asked = np.zeros(size), [None] * size
    every = dict.fromkeys(token for own in self._of.values() for token in own)
    for i in range(0, size, _ROWS):
      probabilities = self._next_token(states[i:i + _ROWS])  # [_ROWS, V]
      for row, subject in enumerate(subjects[i:i + _ROWS]):
        own = self._of.get(key(subject), every)
        token = max(own, key=lambda token, row=row: probabilities[row, token])
        likely[i + row] = probabilities[row, token]
        asked[i + row] = own[token]
    return likely, asked
