"""Continues a few prompts greedily, to show samples of a model's text.

Each step runs the whole window again. For a few short samples, this saves the
code of a key/value cache and compiles one program.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.data import batching
from mansu_jax.data import tokenization
from mansu_jax.eval import scoring
from mansu_jax.runtime import sharding


class Generator:
  """Continues prompts greedily; compiles once for all models of one shape.

  Attributes:
    next_tokens: Compiled `(params, tokens [B, T], length [B]) -> [B]`.
  """

  def __init__(self, apply: scoring.Apply, unembed: scoring.Unembed):
    """Creates a generator; `scoring` documents both functions."""
    self._apply, self._unembed = apply, unembed
    self.next_tokens = jax.jit(self._next_tokens)

  def _next_tokens(self, params, tokens, length):
    """Most likely next token [B] after the first `length` [B] tokens."""
    size, width = tokens.shape
    position = jnp.arange(width)
    mask = jnp.tril(jnp.ones((width, width), bool))
    hidden = self._apply(
        params, tokens, jnp.broadcast_to(position, (size, width)),
        jnp.broadcast_to(mask, (size, width, width)))
    last = hidden[jnp.arange(size), length - 1]  # [B, D]
    return jnp.argmax(self._unembed(params, last), axis=-1)

  def __call__(
      self, params: types.Params, prompts: Sequence[Sequence[int]], *,
      max_new_tokens: int = 16, stop_ids: Collection[int] = ()
  ) -> list[list[int]]:
    """Continues each prompt with its most likely tokens.

    Args:
      params: Params of the model.
      prompts: Token ids of each prompt.
      max_new_tokens: Most tokens to add.
      stop_ids: Tokens that end a continuation and are not part of it.

    Returns:
      The new token ids of each prompt.

    Raises:
      ValueError: a prompt is empty or `max_new_tokens` is not positive.
    """
    if max_new_tokens < 1 or not all(map(len, prompts)):
      raise ValueError(
          f'max_new_tokens={max_new_tokens} and prompts of'
          f' {[len(p) for p in prompts]} tokens; wanted numbers above 0. Give'
          ' non-empty prompts and a positive limit.')
    if not prompts:
      return []
    tokens, length = window(prompts, max_new_tokens)
    start, rows = length.copy(), np.arange(len(prompts))
    running = np.ones(len(prompts), bool)
    for _ in range(max_new_tokens):
      new = sharding.to_host(self.next_tokens(params, tokens, length))
      running &= ~np.isin(new, list(stop_ids))
      if not running.any():
        break
      tokens[rows[running], length[running]] = new[running]
      length += running
    return [tokens[i, start[i]:length[i]].tolist() for i in rows]


def window(
    prompts: Sequence[Sequence[int]], room: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads prompts on the right, with room for more tokens.

  Args:
    prompts: B token id lists.
    room: Padding positions after the longest prompt, at least.

  Returns:
    tokens [B, T] int32 and lengths [B] int32.
  """
  tokens, mask = batching.pad_sequences(prompts, room=room)
  return tokens, mask.sum(1).astype(np.int32)


def complete(
    generator: Generator, params: types.Params, prompts: Sequence[str],
    tokenizer: types.PretrainedTokenizer, *, max_new_tokens: int = 16,
    chat: bool = False) -> list[str]:
  """Continues texts greedily up to the tokenizer's end token.

  Args:
    generator: Compiled generator.
    params: Params of the model.
    prompts: Texts to continue.
    tokenizer: A transformers tokenizer.
    max_new_tokens: Most tokens to add.
    chat: Whether to apply the chat template.

  Returns:
    The new text of each prompt.
  """
  ids = tokenization.encode_prompts(prompts, tokenizer, chat=chat)
  end = getattr(tokenizer, 'eos_token_id', None)
  new = generator(
      params, ids, max_new_tokens=max_new_tokens,
      stop_ids=() if end is None else (end,))
  return [tokenizer.decode(tokens) for tokens in new]
