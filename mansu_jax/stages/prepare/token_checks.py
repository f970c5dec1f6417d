"""Checks that a model can read the tokens of its data.

A token is readable if the vocabulary of the model contains it and its position
is within the model's limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.models import config as model_config
from mansu_jax.stages.prepare import inputs as inputs_lib


def check_data(
    options: run_config.DataConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: types.Tokenizer) -> None:
  """Checks all questions and texts of a run.

  Args:
    options: Configuration of the data.
    inputs: Data of the run.
    shapes: Configuration of the model.
    tokenizer: Tokenizer of the model.

  Raises:
    ValueError: A question or a text has no tokens, or the model cannot read
      them.
  """
  splits = inputs.splits
  trained = [
      *splits.forget_train, *splits.retain_train, *splits.unknown]
  # Some measures draw from all questions, not from those that are scored.
  evaluated = [q for qs in splits.evaluation.values() for q in qs]
  every = {q.id: q for q in trained + evaluated}
  check_questions(
      list(every.values()), shapes, tokenizer, chat=options.chat)
  for documents in (splits.text, inputs.heldout_text, inputs.calibration):
    if documents:
      batching.text_windows(documents, tokenizer, options.text_window)


def check_questions(
    questions: Sequence[questions_lib.Question],
    shapes: model_config.ModelConfig, tokenizer: types.Tokenizer, *, chat: bool
) -> None:
  """Raises ValueError if the model cannot read a question.

  Args:
    questions: Questions to encode.
    shapes: Configuration of the model.
    tokenizer: Tokenizer of the model.
    chat: Whether the chat template applies.
  """
  for question, encoded in zip(questions, tokenization.encode_questions(
      questions, tokenizer, chat=chat)):
    ids = [*encoded.prompt, *(i for c in encoded.choices for i in c)]
    source = question.source or question.id
    if max(ids) >= shapes.vocab_size:
      raise ValueError(
          f'{source}: the tokenizer gives token id {max(ids)}; wanted ids below'
          f' {shapes.vocab_size}, the vocabulary of the model. Use the'
          ' tokenizer that belongs to the weights.')
    if encoded.length > shapes.max_position:
      raise ValueError(
          f'{source}: has {encoded.length} tokens; wanted at most'
          f' {shapes.max_position}, the positions of the model. Shorten the'
          ' prompt.')


def check_pairs(
    pairs: Sequence[pairs_lib.AttributionPair], source: str,
    shapes: model_config.ModelConfig) -> None:
  """Raises ValueError if the model cannot read an attribution pair.

  Args:
    pairs: Encoded pairs.
    source: Where they come from, for the error.
    shapes: Configuration of the model.
  """
  for i, pair in enumerate(pairs):
    ids = (*pair.clean_ids, *pair.corrupt_ids, pair.answer_id,
           pair.corrupt_answer_id)
    if max(ids) >= shapes.vocab_size or (
        len(pair.clean_ids) > shapes.max_position):
      raise ValueError(
          f'{source}: pair {i + 1} has token id {max(ids)} and'
          f' {len(pair.clean_ids)} tokens; wanted ids below'
          f' {shapes.vocab_size}, the vocabulary of the model, and at most'
          f' {shapes.max_position} tokens, its positions. Encode the pair with'
          ' the tokenizer of the model, and shorten long prompts.')
