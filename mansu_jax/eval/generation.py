"""Continues prompts greedily with a cache of keys and values.

Prompts of similar length form a batch, so that a few programs serve all of
them. Prompts that begin alike, such as questions after the same solved
examples, can share the run of their common beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
import os
from typing import NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.data import batching
from mansu_jax.data import packing
from mansu_jax.data import tokenization
from mansu_jax.eval import scoring
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding

SLOTS = 4096  # Tokens that the caches of a batch hold.
STEPS = 4  # Most tokens per call, between two checks for stop tokens.
_WIDTH = 32  # Prompts up to this length form one batch; longer ones, others.

_Item = TypeVar('_Item')

Cache = types.PyTree  # The rows are axis 1 of each leaf.
Result = tuple[types.Array, Cache]


class Prefill(Protocol):
  """Runs the first tokens of each row; see `models.cached.prefill`."""

  def __call__(
      self, params: types.Params, tokens: types.Array, length: types.Array, *,
      slots: int) -> Result:
    """Returns the last hidden states [B, D] and the cache."""


class Extend(Protocol):
  """Runs the next tokens of each row; see `models.cached.extend`."""

  def __call__(
      self, params: types.Params, tokens: types.Array, start: types.Array,
      length: types.Array, cache: Cache) -> Result:
    """Returns the last hidden states [B, D] and the cache."""


class Rows(NamedTuple):
  """Right-padded token sequences."""

  tokens: np.ndarray  # [B, T] int32
  length: np.ndarray  # [B] int32


class Batch(NamedTuple):
  """Prompts that are continued together.

  Attributes:
    prompts: Numbers of at most B prompts; further rows repeat the last.
    rows: Tokens of each prompt behind its beginning, at least one.
    slots: Tokens that a row's cache holds.
    beginnings: Beginnings that prompts share; None if nothing is shared.
    owner: [B] int32, number of each row's beginning.
  """

  prompts: tuple[int, ...]
  rows: Rows
  slots: int
  beginnings: Rows | None = None
  owner: np.ndarray | None = None

  @property
  def start(self) -> np.ndarray:
    """Tokens of each row's beginning, [B] int32."""
    if self.beginnings is None:
      return np.zeros_like(self.rows.length)
    return self.beginnings.length[self.owner]


class Generator:
  """Continues prompts greedily; compiles once for all models of one shape.

  Attributes:
    prefill: Compiled `(params, tokens [B, T], length [B], slots=S)` ->
      (most likely next token [B], cache).
    extend: Compiled `(params, cache of P rows, owner [B], tokens [B, T],
      start [B], length [B])` -> as `prefill`.
    decode: Compiled `(params, token [B], position [B], cache, steps=n)` ->
      (tokens [B, n], cache). It overwrites its cache.
  """

  def __init__(
      self, prefill: Prefill, extend: Extend, unembed: scoring.Unembed):
    """Creates a generator.

    Args:
      prefill: Runs the first tokens of each row.
      extend: Runs the next tokens of each row.
      unembed: Maps hidden states to logits.
    """
    self._run_first, self._run_next, self._unembed = prefill, extend, unembed
    self.prefill = jax.jit(self._prefill, static_argnames='slots')
    self.extend = jax.jit(self._extend)
    self.decode = jax.jit(
        self._decode, static_argnames='steps', donate_argnames='cache')

  def _prefill(self, params, tokens, length, *, slots):
    return self._choose(params, *self._run_first(
        params, tokens, length, slots=slots))

  def _extend(self, params, cache, owner, tokens, start, length):
    rows = jax.tree.map(lambda leaf: leaf[:, owner], cache)
    return self._choose(params, *self._run_next(
        params, tokens, start, length, rows))

  def _decode(self, params, token, position, cache, *, steps):
    def step(carry, _):
      token, position, cache = carry
      token, cache = self._choose(params, *self._run_next(
          params, token[:, None], position, jnp.ones_like(position), cache))
      return (token, position + 1, cache), token

    (*_, cache), tokens = jax.lax.scan(
        step, (token, position, cache), None, length=steps)
    return tokens.T, cache

  def _choose(self, params, hidden, cache):
    """The most likely next token, int32 [B], and the cache."""
    logits = self._unembed(params, hidden)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

  def __call__(
      self, params: types.Params, prompts: Sequence[Sequence[int]], *,
      max_new_tokens: int = 16, stop_ids: Collection[int] = (),
      beginnings: Sequence[Hashable] | None = None, slots: int = SLOTS
  ) -> list[list[int]]:
    """Continues each prompt with its most likely tokens.

    Args:
      params: Params of the model.
      prompts: Token ids of each prompt.
      max_new_tokens: Most tokens to add.
      stop_ids: Tokens that end a continuation and are not part of it.
      beginnings: Label of each prompt; see `batches`.
      slots: Most tokens that the caches of a batch hold, at least one row.

    Returns:
      The new token ids of each prompt.

    Raises:
      ValueError: a prompt is empty or `max_new_tokens` is not positive.
    """
    out: list[list[int]] = [[] for _ in prompts]
    for batch in progress.track(batches(
        prompts, max_new_tokens, beginnings=beginnings, slots=slots),
                                'generation'):
      new = self._continue(params, batch, max_new_tokens, list(stop_ids))
      for i, row in zip(batch.prompts, new):
        stops = np.flatnonzero(np.isin(row, list(stop_ids)))
        out[i] = row[:stops[0] if stops.size else max_new_tokens].tolist()
    return out

  def _continue(
      self, params: types.Params, batch: Batch, most: int, stop_ids: list[int]
  ) -> np.ndarray:
    """New tokens [B, n] of a batch; n < `most` if all rows have stopped."""
    token, cache = self._first(params, batch)
    position = batch.start + batch.rows.length
    out = [sharding.to_host(token)[:, None]]
    calls, steps = decode_calls(most)
    for _ in range(calls):
      if np.isin(np.concatenate(out, axis=1), stop_ids).any(axis=1).all():
        break
      new, cache = self.decode(params, token, position, cache, steps=steps)
      token, position = new[:, -1], position + steps
      out.append(sharding.to_host(new))
    return np.concatenate(out, axis=1)

  def _first(self, params: types.Params, batch: Batch) -> Result:
    """The first new token of each row and the cache."""
    if batch.beginnings is None:
      return self.prefill(params, *batch.rows, slots=batch.slots)
    _, cache = self.prefill(params, *batch.beginnings, slots=batch.slots)
    return self.extend(
        params, cache, batch.owner, batch.rows.tokens, batch.start,
        batch.rows.length)


def decode_calls(most: int) -> tuple[int, int]:
  """Calls of `Generator.decode` and steps of each, for `most` new tokens."""
  calls = -(-(most - 1) // STEPS)
  return calls, -(-(most - 1) // max(calls, 1))


def batches(
    prompts: Sequence[Sequence[int]], most: int, *,
    beginnings: Sequence[Hashable] | None = None, slots: int = SLOTS
) -> list[Batch]:
  """Forms batches of at most three shapes.

  Args:
    prompts: Token ids of each prompt.
    most: Most tokens to add.
    beginnings: Label of each prompt. Prompts with the same label run the tokens
      with which all of them begin once in a batch. None: nothing is shared.
    slots: Most tokens that the caches of a batch hold, at least one row.

  Raises:
    ValueError: a prompt is empty or `most` is not positive.
  """
  lengths = [len(p) for p in prompts]
  if most < 1 or not all(lengths):
    raise ValueError(
        f'max_new_tokens={most} and prompts of {lengths} tokens; wanted numbers'
        ' above 0. Give non-empty prompts and a positive limit.')
  if not prompts:
    return []
  if beginnings is None:
    cuts = [0] * len(prompts)
  else:
    cuts = _shared_lengths(prompts, beginnings)
  calls, steps = decode_calls(most)
  out, lower = [], 0
  for width in packing.row_lengths(lengths, _WIDTH):
    chosen = [i for i, n in enumerate(lengths) if lower < n <= width]
    lower = width
    if chosen:
      needed = max(lengths[i] for i in chosen) + calls * steps
      out += _of_one_shape(
          {i: prompts[i] for i in chosen}, cuts, packing.round_up(needed),
          budget=slots)
  return out


def _shared_lengths(
    prompts: Sequence[Sequence[int]], beginnings: Sequence[Hashable]
) -> list[int]:
  """Tokens that each prompt has in common with all others of its label."""
  members: dict[Hashable, list[int]] = {}
  for i, label in enumerate(beginnings):
    members.setdefault(label, []).append(i)
  cuts = [0] * len(prompts)
  for numbers in members.values():
    shared = os.path.commonprefix([list(prompts[i]) for i in numbers])
    for i in numbers:  # Each row keeps a token of its own, which predicts.
      cuts[i] = min(len(shared), *(len(prompts[j]) - 1 for j in numbers))
  return cuts


def _of_one_shape(
    prompts: Mapping[int, Sequence[int]], cuts: Sequence[int], slots: int, *,
    budget: int) -> list[Batch]:
  """Batches of numbered prompts, of which `cuts[i]` tokens are shared."""
  begin = {i: tuple(p[:cuts[i]]) for i, p in prompts.items()}
  rest = {i: p[cuts[i]:] for i, p in prompts.items()}
  order = sorted(prompts, key=lambda i: (begin[i], i))
  size = sharding.round_up_rows(packing.batch_rows(
      len(order), max(1, budget // slots)))
  parts = [order[i:i + size] for i in range(0, len(order), size)]
  rows = _stack([[rest[i] for i in part] for part in parts], size)
  if not any(begin.values()):
    return [Batch(tuple(part), row, slots) for part, row in zip(parts, rows)]
  distinct = [list(dict.fromkeys(begin[i] for i in part)) for part in parts]
  shared = _stack(
      distinct, sharding.round_up_rows(max(map(len, distinct))))
  owners = [_repeat_last([found.index(begin[i]) for i in part], size)
            for part, found in zip(parts, distinct)]
  return [Batch(tuple(part), row, slots, beginning, np.array(owner, np.int32))
          for part, row, beginning, owner in zip(parts, rows, shared, owners)]


def _stack(
    parts: Sequence[Sequence[Sequence[int]]], size: int) -> list[Rows]:
  """Pads each part's sequences to `size` rows of one width."""
  full = [ids for part in parts for ids in _repeat_last(part, size)]
  tokens, mask = batching.pad_sequences(full)
  length = mask.sum(1).astype(np.int32)
  return [Rows(tokens[i:i + size], length[i:i + size])
          for i in range(0, len(full), size)]


def _repeat_last(items: Sequence[_Item], size: int) -> list[_Item]:
  return [*items, *[items[-1]] * (size - len(items))]


def shapes(found: Sequence[Batch]) -> list[tuple[Batch, int]]:
  """One batch of each shape, and the number of batches of this shape."""
  kinds: dict[Hashable, list[Batch]] = {}
  for batch in found:
    kind = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch[1:]))
    kinds.setdefault((kind, batch.slots), []).append(batch)
  return [(same[0], len(same)) for same in kinds.values()]


def complete(
    generator: Generator, params: types.Params, prompts: Sequence[str],
    tokenizer: types.PretrainedTokenizer, *, max_new_tokens: int = 16,
    stop_ids: Collection[int] = (), chat: bool = False,
    beginnings: Sequence[Hashable] | None = None, slots: int = SLOTS
) -> list[str]:
  """Continues texts greedily.

  Args:
    generator: Compiled generator.
    params: Params of the model.
    prompts: Texts to continue.
    tokenizer: A transformers tokenizer.
    max_new_tokens: Most tokens to add.
    stop_ids: Tokens that end a continuation, as `LoadedModel.end_tokens`.
    chat: Whether to apply the chat template.
    beginnings: Label of each prompt; see `batches`.
    slots: Most tokens that the caches of a batch hold.

  Returns:
    The new text of each prompt.
  """
  ids = tokenization.encode_prompts(prompts, tokenizer, chat=chat)
  new = generator(
      params, ids, max_new_tokens=max_new_tokens, beginnings=beginnings,
      slots=slots, stop_ids=stop_ids)
  return [tokenizer.decode(tokens) for tokens in new]
