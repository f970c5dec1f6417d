"""Questions to token ids: a prompt, and continuations that start at a space.

A continuation holds the tokens that `prompt + ' ' + choice` has beyond the
prompt's own, as lm-evaluation-harness splits them; where a tokenizer merges
over the border, `' ' + choice` is encoded by itself, so that all choices of a
question share one prompt. Start tokens are those which the tokenizer's
configuration adds. With `chat`, the prompt is a user turn of the tokenizer's
chat template and the continuation opens the assistant's turn, without a space;
start tokens are those of the template. A prompt that holds the tokenizer's
special tokens, such as turns written out in a data file, is in some form
already: it is never wrapped.
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


def is_marked(prompt: str, tokenizer: Tokenizer) -> bool:
  """Whether a prompt holds special tokens, as turns that are written out."""
  special = getattr(tokenizer, 'all_special_tokens', ())
  return any(token in prompt for token in special)


def prompt_text(
    prompt: str, tokenizer: Tokenizer, *, chat: bool = False) -> str:
  """The text before the continuation: no trailing space, or a chat turn.

  Raises:
    ValueError: the tokenizer has no chat template, or one that it cannot fill.
  """
  return _asked(prompt, tokenizer, chat).text


def check_template(tokenizer: Tokenizer | None, name: str) -> None:
  """Raises ValueError where a model, by name, cannot be asked in chat form."""
  if tokenizer is None:
    raise ValueError(
        f'{name}: there is no tokenizer, but --data_chat asks facts through the'
        ' chat template of one; wanted tokenizer.json beside the weights. Copy'
        ' it there, or leave --data_chat out.')
  try:
    prompt_text('a', tokenizer, chat=True)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


class _Asked(NamedTuple):
  """A prompt in its form."""

  text: str
  separator: str  # Before the continuation.
  start: list[int]  # Tokens before the text.


def _asked(
    prompt: str, tokenizer: Tokenizer, chat: bool,
    start: Sequence[int] = ()) -> _Asked:
  """A prompt in its form; `start` tokens where no template brings its own."""
  if chat and not is_marked(prompt, tokenizer):
    return _Asked(_user_turn(prompt, tokenizer), '', [])
  return _Asked(prompt.rstrip(), ' ', list(start))


def _user_turn(prompt: str, tokenizer: Tokenizer) -> str:
  """A prompt as the user's turn, up to where the assistant's begins."""
  if not getattr(tokenizer, 'chat_template', None):
    raise ValueError(
        'The tokenizer has no chat template, but --data_chat asks facts through'
        ' one; wanted a chat_template in tokenizer_config.json, a file'
        ' chat_template.jinja beside it, or tokenizer.chat_template in a .gguf'
        ' file. Leave --data_chat out, or give a model that has one.')
  try:
    return tokenizer.apply_chat_template(
        [{'role': 'user', 'content': prompt}], tokenize=False,
        add_generation_prompt=True)
  except Exception as error:  # Whatever a template raises, jinja2 not there.
    raise ValueError(
        f'The chat template of the tokenizer cannot be filled ({error}); wanted'
        ' one that takes a single user turn. Leave --data_chat out, or mend the'
        ' template.') from error


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer, *, chat: bool = False
) -> list[list[int]]:
  """Token ids of each prompt, start tokens included."""
  start = prefix_ids(tokenizer)
  asked = [_asked(p, tokenizer, chat, start) for p in prompts]
  return [one.start + ids for one, ids in zip(
      asked, encode([one.text for one in asked], tokenizer))]


def tokens_before(
    prompts: Sequence[str], ends: Sequence[int], tokenizer: Tokenizer, *,
    chat: bool = False) -> list[int]:
  """How many tokens of each encoded prompt lie before a place in its text.

  Args:
    prompts: texts.
    ends: the place in each; spaces before it do not count.
    tokenizer: see `encode`.
    chat: as in `encode_prompts`.

  Raises:
    ValueError: a chat template that changes what it is given.
  """
  start, texts, extra = prefix_ids(tokenizer), [], []
  for prompt, end in zip(prompts, ends):
    asked, before = _asked(prompt, tokenizer, chat, start), prompt[:end]
    place = asked.text.rfind(prompt.strip())
    if place < 0:
      raise ValueError(
          f'The chat template writes {prompt!r} as {asked.text!r}; wanted the'
          ' prompt word for word, to find its subject there. Leave --data_chat'
          ' out, or give --unlearn_swapped_batch=0.')
    texts.append((asked.text[:place] + before.strip()).rstrip(' '))
    extra.append(len(asked.start))
  return [more + len(ids)
          for more, ids in zip(extra, encode(texts, tokenizer))]


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
  start = prefix_ids(tokenizer)
  asked = [_asked(q.prompt, tokenizer, chat, start) for q in questions]
  tails = [one.separator + c.strip()
           for one, q in zip(asked, questions) for c in q.choices]
  owners = [i for i, q in enumerate(questions) for _ in q.choices]
  whole = encode(
      [asked[i].text + t for i, t in zip(owners, tails)], tokenizer)
  alone = encode(tails, tokenizer)
  prompts = encode([one.text for one in asked], tokenizer)
  out = [Encoded(one.start + ids, []) for one, ids in zip(asked, prompts)]
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
