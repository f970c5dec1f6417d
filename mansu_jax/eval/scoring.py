"""Log-probabilities of next tokens at given positions of packed batches.

A run spends most of its time here. The scorer gathers the hidden states at the
scored positions before the unembedding, and normalizes over the vocabulary in
blocks, so no `[B, T, V]` array exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.data import packing
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding

# (params, tokens [B, T], positions [B, T], attention_mask [B, T, S])
#   -> hidden [B, T, D]. A scorer with a `prefix` passes its result as tokens.
Apply = Callable[..., types.Array]
# (params, hidden [..., D]) -> logits [..., V]
Unembed = Callable[[types.Params, types.Array], types.Array]

LOGIT_BYTES = 50_000_000  # Most bytes of one block of float32 logits.
CACHE_BYTES = 1_000_000_000  # Most bytes in one `HiddenCache`.
_MOST_POSITIONS = 192  # Measured fastest on CPU for a vocabulary of 49152.


class Call(NamedTuple):
  """A program that a scorer runs."""

  fn: Any  # jitted
  args: tuple[Any, ...]  # params and shapes
  calls: int
  shared: bool  # Runs once for all models that share a prefix.


class HiddenCache:
  """Caches the results of a shared prefix on the host, by batch."""

  def __init__(self, limit: int = CACHE_BYTES):
    """Creates an empty cache.

    Args:
      limit: Most bytes to store. Further batches are recomputed.
    """
    self._room, self._states = limit, {}

  def get(
      self, batch: packing.PackedBatch, make: Callable[[], types.Array]
  ) -> types.Array | np.ndarray:
    """Returns the cached result of a batch, or calls `make`."""
    if batch in self._states:
      return self._states[batch]
    state = make()
    if state.nbytes <= self._room:
      self._room -= state.nbytes
      self._states[batch] = sharding.to_host(state)
    return state


class Scorer:
  """Scores packed segments; compiles once for all models of one shape.

  The compiled functions take `params` as an argument, so the base, unlearned
  and quantized models share one program.
  """

  def __init__(
      self, apply: Apply, unembed: Unembed, *, prefix: Apply | None = None,
      logit_bytes: int = LOGIT_BYTES):
    """Creates a scorer.

    Args:
      apply: Runs the decoder up to its final norm; see `Apply`.
      unembed: Maps hidden states to logits; see `Unembed`.
      prefix: Runs the layers that several models share, with the arguments of
        `apply`; `apply` gets its result instead of the tokens. Models that use
        one `HiddenCache` run the prefix once.
      logit_bytes: Most bytes of one float32 block of logits.
    """
    self._apply, self._unembed = jax.jit(apply), unembed
    self._prefix = prefix and jax.jit(prefix)
    self._normalized = jax.jit(self._target_logprobs)
    self._logit_bytes = logit_bytes

  def programs(
      self, params: types.Params, batches: Sequence[packing.PackedBatch],
      positions: Sequence[np.ndarray], targets: Sequence[np.ndarray]
  ) -> list[Call]:
    """Lists the programs that `logprobs` runs for one model.

    Args:
      params: Params of the model, or their shapes.
      batches: See `logprobs`.
      positions: See `logprobs`.
      targets: See `logprobs`.
    """
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    kinds: dict[Any, list[Any]] = {}
    for batch in batches:
      rows = tuple(map(shape, (
          batch.tokens, batch.positions, batch.attention_mask)))
      kinds.setdefault(rows[0].shape, [rows, 0])[1] += 1
    out, hidden = [], None
    for (tokens, *rest), calls in kinds.values():
      if self._prefix is not None:
        out.append(Call(self._prefix, (params, tokens, *rest), calls, True))
        tokens = shape(jax.eval_shape(*out[-1][:1], *out[-1].args))
      out.append(Call(self._apply, (params, tokens, *rest), calls, False))
      hidden = jax.eval_shape(self._apply, *out[-1].args)
    if hidden is None:
      return []
    size = self._block_size(params, batches[0])
    return out + [Call(self._normalized, (
        params, jax.ShapeDtypeStruct((size, hidden.shape[-1]), hidden.dtype),
        jax.ShapeDtypeStruct((size, targets[0].shape[1]), jnp.int32)),
                       -(-sum(map(len, positions)) // size), False)]

  def logprobs(
      self, params: types.Params, batches: Sequence[packing.PackedBatch],
      positions: Sequence[np.ndarray], targets: Sequence[np.ndarray],
      cache: HiddenCache | None = None) -> list[np.ndarray]:
    """Computes log-probabilities of target tokens in every segment.

    Args:
      params: Params of the model.
      batches: Packed segments.
      positions: Scored positions [m] int of each segment.
      targets: Token ids [m, K] int to score at each position, for each segment.
        K is the same for all segments; padding holds any valid id.
      cache: Cache shared with models that have the same prefix.

    Returns:
      Log-probabilities [m, K] float32 of each segment.
    """
    if not batches:
      return []
    size = self._block_size(params, batches[0])
    rows = self._rows(
        params, batches, positions, targets, cache or HiddenCache(0))
    scored = []
    for hidden, wanted, count in _blocks(rows, size):
      block = self._normalized(params, hidden, wanted)
      scored.append(sharding.to_host(block)[:count])
    visited = [s for batch in batches for s in batch.segments]
    ends = np.cumsum([len(positions[s]) for s in visited])
    parts = np.split(np.concatenate(scored), ends[:-1])
    found = dict(zip(visited, parts))
    return [found[s] for s in range(len(positions))]

  def _target_logprobs(self, params, hidden, targets):
    """Log-probabilities [C, K] of targets [C, K] after hidden [C, D]."""
    logits = self._unembed(params, hidden).astype(jnp.float32)  # [C, V]
    norm = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return jnp.take_along_axis(logits, targets, axis=-1) - norm

  def _block_size(
      self, params: types.Params, batch: packing.PackedBatch) -> int:
    """Positions per block such that its logits fit the budget."""
    hidden = jax.eval_shape(
        self._hidden, params, batch.tokens, batch.positions,
        batch.attention_mask)
    logits = jax.eval_shape(self._unembed, params, hidden)
    fit = self._logit_bytes // (4 * logits.shape[-1])
    return min(_MOST_POSITIONS, max(1, fit))

  def _hidden(self, params, tokens, *rest, get=lambda make: make()):
    """Hidden states [B, T, D]; `get` returns the prefix or makes it."""
    if self._prefix is None:
      return self._apply(params, tokens, *rest)
    x = get(lambda: self._prefix(params, tokens, *rest))
    return self._apply(params, x, *rest)

  def _rows(
      self, params, batches, positions, targets, cache
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hidden states [m, D] and targets [m, K] to score, batch by batch."""
    for batch in progress.track(batches, 'scoring'):
      progress.count_tokens(sum(len(positions[s]) for s in batch.segments))
      hidden = sharding.to_host(self._hidden(
          params, batch.tokens, batch.positions, batch.attention_mask,
          get=functools.partial(cache.get, batch)))
      index = np.concatenate([
          offset + positions[s]
          for s, offset in zip(batch.segments, batch.offsets)])
      wanted = np.concatenate([targets[s] for s in batch.segments])
      flat = hidden.reshape(-1, hidden.shape[-1])  # [B * T, D]
      yield flat[index], wanted.astype(np.int32)


def _blocks(
    rows: Iterator[tuple[np.ndarray, np.ndarray]], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Regroups rows into blocks of `size`; pads the last block.

  Yields:
    hidden [size, D], targets [size, K] and the number of rows before padding.
  """
  rest = None
  for new in rows:
    rest = new if rest is None else tuple(
        np.concatenate(pair) for pair in zip(rest, new))
    while len(rest[0]) >= size:
      yield rest[0][:size], rest[1][:size], size
      rest = rest[0][size:], rest[1][size:]
  if rest is not None and len(rest[0]):
    count = len(rest[0])
    pad = ((0, size - count), (0, 0))
    yield np.pad(rest[0], pad), np.pad(rest[1], pad), count
