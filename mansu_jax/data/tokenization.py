"""Questions to token ids: a prompt, and continuations that start at a space.

A continuation holds the tokens that `prompt + ' ' + choice` has beyond the
prompt's own, as lm-evaluation-harness splits them; where a tokenizer merges
over the border, `' ' + choice` is encoded by itself, so that all choices of a
question share one prompt. Start tokens are those which the tokenizer's
configuration adds. With `chat`, the prompt is a user turn of the tokenizer's
chat template and the continuation opens the assistant's turn, without a space.
"""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
from typing import Any, NamedTuple

from mansu_jax.data import questions as questions_lib

Question = questions_lib.Question
Tokenizer = Any  # A transformers tokenizer, or what is called alike.


class Encoded(NamedTuple):
  """Token ids of a question."""

  prompt: list[int]
  choices: list[list[int]]  # In the question's order, none empty.


def encode(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
  """Token ids of each text, without special tokens added."""
  if not texts:
    return []
  batch = tokenizer(list(texts), add_special_tokens=False)
  return [list(ids) for ids in batch['input_ids']]


def prefix_ids(tokenizer: Tokenizer) -> list[int]:
  """Special tokens that the tokenizer puts before a text (often one BOS)."""
  bare = encode(['a'], tokenizer)[0]
  full = list(tokenizer(['a'], add_special_tokens=True)['input_ids'][0])
  for start in range(len(full) - len(bare) + 1):
    if full[start:start + len(bare)] == bare:
      return full[:start]
  raise ValueError(
      f"The tokenizer encodes 'a' as {bare} but with special tokens as {full};"
      ' wanted the same tokens with special ones around them. Use another'
      ' tokenizer for this model.')


def describe(tokenizer: Tokenizer, *, chat: bool = False) -> dict[str, Any]:
  """What a run records of its tokenization; JSON-able."""
  template = getattr(tokenizer, 'chat_template', None)
  digest = hashlib.sha256(str(template).encode()).hexdigest()
  return {
      'tokenizer': type(tokenizer).__name__,
      'prefix_ids': prefix_ids(tokenizer),
      'chat': chat,
      'chat_template_sha256': digest if template else None,
      'separator': '' if chat else ' ',
  }


def prompt_text(
    prompt: str, tokenizer: Tokenizer, *, chat: bool = False) -> str:
  """The text before the continuation: no trailing space, or a chat turn."""
  if not chat:
    return prompt.rstrip()
  if not getattr(tokenizer, 'chat_template', None):
    raise ValueError(
        'The tokenizer has no chat template, but prompts in chat form were'
        ' asked for. Use the plain form, or a model with a template.')
  return tokenizer.apply_chat_template(
      [{'role': 'user', 'content': prompt}], tokenize=False,
      add_generation_prompt=True)


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer, *, chat: bool = False
) -> list[list[int]]:
  """Token ids of each prompt, start tokens included."""
  start = [] if chat else prefix_ids(tokenizer)  # Templates hold their own.
  texts = [prompt_text(p, tokenizer, chat=chat) for p in prompts]
  return [start + ids for ids in encode(texts, tokenizer)]


def encode_questions(
    questions: Sequence[Question], tokenizer: Tokenizer, *, chat: bool = False
) -> list[Encoded]:
  """Encodes prompts and all their choices.

  Args:
    questions: what to encode.
    tokenizer: called on lists of texts.
    chat: whether to wrap prompts in the tokenizer's chat template.

  Raises:
    ValueError: a prompt or a choice has no tokens, or two choices the same.
  """
  separator = '' if chat else ' '
  start = [] if chat else prefix_ids(tokenizer)
  texts = [prompt_text(q.prompt, tokenizer, chat=chat) for q in questions]
  tails = [separator + c.strip() for q in questions for c in q.choices]
  owners = [i for i, q in enumerate(questions) for _ in q.choices]
  whole = encode([texts[i] + t for i, t in zip(owners, tails)], tokenizer)
  alone = encode(tails, tokenizer)
  prompts = encode(texts, tokenizer)
  out = [Encoded(start + ids, []) for ids in prompts]
  for i, joint, tail in zip(owners, whole, alone):
    out[i].choices.append(_continuation(prompts[i], joint, tail))
  for question, encoded in zip(questions, out):
    _check_tokens(question, encoded)
  return out


def _continuation(
    prompt: list[int], whole: list[int], alone: list[int]) -> list[int]:
  same = whole[:len(prompt)] == prompt
  return whole[len(prompt):] if same else alone


def _check_tokens(question: Question, encoded: Encoded) -> None:
  """Raises ValueError when tokens cannot tell a question's parts."""
  where = question.source or question.id
  if not encoded.prompt:
    raise ValueError(
        f'{where}: prompt {question.prompt!r} has no tokens; wanted at least'
        ' one to predict the answer from. Lengthen the prompt.')
  for choice, ids in zip(question.choices, encoded.choices):
    if not ids:
      what = 'answer' if choice == question.answer else 'choice'
      raise ValueError(
          f'{where}: {what} {choice!r} has no tokens with this tokenizer;'
          ' wanted at least one. Reword it.')
  if len(set(map(tuple, encoded.choices))) < len(encoded.choices):
    raise ValueError(
        f'{where}: two of the choices {list(question.choices)} have the same'
        ' tokens with this tokenizer; wanted choices it can tell apart. Reword'
        ' one.')
