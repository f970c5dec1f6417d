"""The probe of forgetting that a run prints, and that ends training.

The share of a sample of the forget set's train questions that the model answers
correctly in full precision: the first token of the right answer is likelier
than that of each other choice or, without other choices, than any token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.runtime import sharding
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.train import edits
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import step_data

MOST = 64  # Questions.

Questions = Sequence[questions_lib.Question]


class Probe(NamedTuple):
  """m questions, packed into rows."""

  packed: step_data.Packed
  ends: np.ndarray  # [m] int32, last prompt positions in the flattened rows
  right: np.ndarray  # [m] int32, first token of the right answer
  wrong: np.ndarray  # [m, K] int32, first tokens of the other choices
  valid: np.ndarray  # [m, K] bool, False on padding

  @property
  def chance(self) -> float:
    """The share of right answers of a model that guesses."""
    wrong = self.valid.sum(1)
    return float(np.mean((wrong > 0) / (1 + wrong)))


def of_run(
    options: run_config.UnlearnConfig, questions: Questions,
    tokenizer: types.Tokenizer, *, chat: bool, seed: int) -> Probe | None:
  """The probe of a run; None if it has none.

  Args:
    options: whether and how often to look.
    questions: as for `make`.
    tokenizer: as for `make`.
    chat: as for `make`.
    seed: as for `make`.

  Raises:
    ValueError: --unlearn_stop_forget needs a probe, and there is none.
  """
  if not options.stop_forget and not options.probe_every:
    return None
  try:
    return make(questions, tokenizer, chat=chat, seed=seed)
  except NoQuestions as error:
    if options.stop_forget:
      raise
    logging.warning('Training takes all its steps: %s', error)
    return None


def every(options: run_config.UnlearnConfig) -> int:
  """Steps between looks: large rates reach a target within a few steps."""
  return 1 if options.stop_forget else options.probe_every


class NoQuestions(ValueError):
  """No train question can be asked by first tokens."""


def make(
    questions: Questions, tokenizer: types.Tokenizer, *, chat: bool, seed: int,
    most: int = MOST) -> Probe:
  """Draws and packs the questions, evenly over facts.

  Each prompt is asked once: of questions with the same prompt, the first stays.
  Questions whose right answer shares its first token with another choice are
  left out.

  Args:
    questions: train questions of the forget set.
    tokenizer: the model's.
    chat: whether to ask in the chat template.
    seed: of the draw.
    most: largest number of questions.

  Raises:
    NoQuestions: no question is left.
  """
  encoded = tokenization.encode_questions(questions, tokenizer, chat=chat)
  usable, prompts = {}, set()
  for question, (prompt, choices) in zip(questions, encoded):
    first = [ids[0] for ids in choices]
    right = first[question.answer_index]
    if first.count(right) == 1 and tuple(prompt) not in prompts:
      prompts.add(tuple(prompt))
      usable[question.id] = prompt, right, [t for t in first if t != right]
  chosen = inputs_lib.thin(
      [q for q in questions if q.id in usable], most, seed)
  if not chosen:
    raise NoQuestions(
        f'none of the {len(questions)} train questions of the forget set has a'
        ' right answer whose first token differs from those of its other'
        ' choices, so that no probe can look at what is forgotten. Leave'
        ' --unlearn_stop_forget out, or add choices.')
  return _pack([usable[q.id] for q in chosen])


def _pack(rows: Sequence[tuple[list[int], int, list[int]]]) -> Probe:
  """Packs `(prompt, right token, wrong tokens)` of each question."""
  prompts, right, wrong = zip(*rows)
  length = np.array([len(p) for p in prompts])
  tokens = np.zeros((len(rows), length.max()), np.int32)
  for row, prompt in zip(tokens, prompts):
    row[:len(prompt)] = prompt
  one = np.zeros((len(rows), 1), np.int32)
  spans = batches_lib.Spans(
      tokens, length.astype(np.int32), one, one, one.astype(np.float32), None)
  packed, (starts,) = batches_lib.pack([spans])
  more = sharding.round_up_rows(len(packed.tokens))
  if more > len(packed.tokens):
    packed, (starts,) = batches_lib.pack([spans], rows=more)
  width = max(1, *map(len, wrong))
  padded = [list(some) + [0] * (width - len(some)) for some in wrong]
  return Probe(
      packed, np.int32(starts + length - 1), np.array(right, np.int32),
      np.array(padded, np.int32),
      np.arange(width) < np.array([[len(some)] for some in wrong]))


def program(edit: edits.Edit) -> Callable[..., types.Array]:
  """Jitted `(theta, frozen, probe) -> share of right answers`."""
  forward, unembed = edit.forward, edit.unembed

  @jax.jit
  def right_share(theta, frozen, probe):
    hidden = forward(theta, frozen, *probe.packed)
    logits = unembed(theta, frozen, hidden.reshape(
        -1, hidden.shape[-1])[probe.ends])  # [m, V]
    at = lambda tokens: jnp.take_along_axis(logits, tokens, axis=-1)
    right = at(probe.right[:, None])[:, 0]
    wrong = jnp.where(probe.valid, at(probe.wrong), -jnp.inf).max(-1)
    return jnp.mean(jnp.where(
        probe.valid.any(-1), right > wrong, right >= logits.max(-1)))

  return right_share


def measure(
    edit: edits.Edit, probe: Probe) -> Callable[[types.PyTree], float]:
  """`theta -> share of right answers` in full precision."""
  run = program(edit)
  return lambda theta: float(sharding.to_host(run(theta, edit.base, probe)))
