"""A stub tokenizer for plans of models without one: it estimates lengths.

A plan needs the prompts' lengths, not their tokens. English words of up to
seven letters count as one token and longer ones as several, which is within a
few percent of vocabularies of 50 to 130 thousand tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
import re
from typing import Any

_PIECES = re.compile(r' ?[^\W\d_]{1,7}| ?\d{1,3}| ?[^\w\s]+|\s+|_+')
_START = 0


class Tokenizer:
  """Has the interface of a transformers tokenizer; equal pieces share an id."""

  # As long as the templates of SmolLM2 and Llama 3, with a system turn.
  chat_template = (
      '<|im_start|>system\nYou are a helpful assistant of today.<|im_end|>\n'
      '<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n')

  def __init__(self, vocab_size: int):
    self._size, self._ids = vocab_size, {'': _START}

  def __len__(self) -> int:
    return self._size

  def __call__(
      self, texts: Sequence[str], add_special_tokens: bool = True, **_: Any
  ) -> dict[str, list[list[int]]]:
    """`{'input_ids': ids of each text}`, with a start token if asked for."""
    start = [_START] if add_special_tokens else []
    return {'input_ids': [start + self._encode(text) for text in texts]}

  def apply_chat_template(
      self, messages: Sequence[dict[str, str]], **_: Any) -> str:
    """The user's turn, up to the start of the assistant's."""
    return self.chat_template.format(messages[0]['content'])

  def _encode(self, text: str) -> list[int]:
    return [self._ids.setdefault(piece, len(self._ids)) % self._size
            for piece in _PIECES.findall(text)]
