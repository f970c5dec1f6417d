"""Types, and the axis letters of all comments on arrays.

Axes: B batch, T query token, S key token, D model width, N query heads,
K key/value heads, H head width, F MLP width, V vocabulary, L layers,
M path steps, E edges, R rank, Q quantization block. Circuit slices have n
neurons, m query heads and c key/value heads in each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

Array = jax.Array
Params = dict[str, Any]  # Nested dicts of arrays; see tree_paths for names.
PyTree = Any


class Tokenizer(Protocol):
  """The part of a transformers tokenizer that encodes prompts.

  Attributes:
    chat_template: template in Jinja, or None.
  """

  chat_template: str | None

  def __len__(self) -> int:
    """Size of the vocabulary."""

  def __call__(
      self, text: Sequence[str], *, add_special_tokens: bool = ...
  ) -> Mapping[str, Any]:
    """`{'input_ids': ids of each text}`."""

  def apply_chat_template(
      self, conversation: Sequence[dict[str, str]], *, tokenize: bool = ...,
      add_generation_prompt: bool = ..., enable_thinking: bool = ...) -> str:
    """The text of chat turns `{'role': ..., 'content': ...}`."""


class PretrainedTokenizer(Tokenizer, Protocol):
  """The part of a transformers tokenizer that the package uses.

  Attributes:
    unk_token_id: id of unknown tokens, or None.
  """

  unk_token_id: int | None

  def decode(self, token_ids: Sequence[int]) -> str:
    """The text of token ids."""

  def get_vocab(self) -> dict[str, int]:
    """`{token: id}`."""

  def save_pretrained(self, save_directory: str) -> Any:
    """Writes the tokenizer's files."""
