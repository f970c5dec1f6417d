"""Greedy continuations of a few prompts, to read what a model says.

Every step runs the whole window anew: for a handful of short samples that
costs less than a cache would in code, and nothing is compiled twice.
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
  """Continues prompts greedily; compiled once for all models of one shape.

  Attributes:
    next_tokens: the program, `(params, tokens [B, T], length [B]) -> [B]`.
  """

  def __init__(self, apply: scoring.Apply, unembed: scoring.Unembed):
    """Creates a generator; see `scoring` for the functions."""
    self._apply, self._unembed = apply, unembed
    self.next_tokens = jax.jit(self._next_tokens)

  def _next_tokens(self, params, tokens, length):
    """Most likely next token [B] of rows [B, T] that are `length` [B] long."""
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
    """Continues each prompt by its most likely tokens.

    Args:
      params: the model.
      prompts: token ids, none empty.
      max_new_tokens: most tokens to add.
      stop_ids: tokens that end a continuation; not part of it.

    Returns:
      New token ids of each prompt.

    Raises:
      ValueError: a prompt is empty or `max_new_tokens` is not positive.
    """
    if max_new_tokens < 1 or not all(map(len, prompts)):
      raise ValueError(
          f'max_new_tokens={max_new_tokens} and prompts of'
          f' {[len(p) for p in prompts]} tokens; wanted all above 0. Give'
          ' prompts that have tokens.')
    if not prompts:
      return []
    tokens, length = window(prompts, max_new_tokens)
    start, rows = length.copy(), np.arange(len(prompts))
    open_ = np.ones(len(prompts), bool)
    for _ in range(max_new_tokens):
      new = sharding.to_host(self.next_tokens(params, tokens, length))
      open_ &= ~np.isin(new, list(stop_ids))
      if not open_.any():
        break
      tokens[rows[open_], length[open_]] = new[open_]
      length += open_
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
    tokenizer: tokenization.Tokenizer, *, max_new_tokens: int = 16,
    chat: bool = False) -> list[str]:
  """Texts that the model puts behind each prompt, up to its end token."""
  ids = tokenization.encode_prompts(prompts, tokenizer, chat=chat)
  end = getattr(tokenizer, 'eos_token_id', None)
  new = generator(
      params, ids, max_new_tokens=max_new_tokens,
      stop_ids=() if end is None else (end,))
  return [tokenizer.decode(tokens) for tokens in new]
