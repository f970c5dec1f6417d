"""Log-probabilities of next tokens at chosen positions of packed batches.

Most of a run's time is here. The hidden state is gathered at the positions that
predict something before it meets the vocabulary, and the vocabulary is
normalised in chunks, so that no `[B, T, V]` array exists.
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
#   -> hidden [B, T, D]; in place of the tokens what `below` makes of them
Apply = Callable[..., types.Array]
# (params, hidden [..., D]) -> logits [..., V]
Unembed = Callable[[types.Params, types.Array], types.Array]

LOGIT_BYTES = 50_000_000  # Most that one block of float32 logits may take.
KEPT_BYTES = 1_000_000_000  # Most that one `Kept` may take.
_MOST_POSITIONS = 256  # A block of more positions gains no speed.


class Call(NamedTuple):
  """A program that a scorer runs."""

  fn: Any  # jitted
  args: tuple[Any, ...]  # params and shapes
  calls: int
  shared: bool  # Once for all models that have layers in common.


class Kept:
  """What `below` gave, on the host, by batch: of as many as fit."""

  def __init__(self, limit: int = KEPT_BYTES):
    """Holds nothing yet.

    Args:
      limit: bytes in all.
    """
    self._room, self._states = limit, {}

  def get(
      self, batch: packing.PackedBatch, make: Callable[[], types.Array]
  ) -> types.Array | np.ndarray:
    """What was kept for the batch, else what `make` gives."""
    if batch in self._states:
      return self._states[batch]
    state = make()
    if state.nbytes <= self._room:
      self._room -= state.nbytes
      self._states[batch] = sharding.to_host(state)
    return state


class Scorer:
  """Scores packed segments; compiled once for all models of one shape.

  `params` is an argument of the compiled functions: the base, the unlearned
  and the quantized model share one program.
  """

  def __init__(
      self, apply: Apply, unembed: Unembed, *, below: Apply | None = None,
      logit_bytes: int = LOGIT_BYTES):
    """Creates a scorer.

    Args:
      apply: the decoder up to its final norm, see `Apply`.
      unembed: hidden states to logits, see `Unembed`.
      below: of the arguments of `apply`; its result takes the tokens' place
        there. What models have in common, so that it is computed once for all
        that are given one `Kept`.
      logit_bytes: most bytes of one float32 block of logits.
    """
    self._apply, self._unembed = jax.jit(apply), unembed
    self._below = below and jax.jit(below)
    self._normalised = jax.jit(self._target_logprobs)
    self._logit_bytes = logit_bytes

  def programs(
      self, params: types.Params, batches: Sequence[packing.PackedBatch],
      positions: Sequence[np.ndarray], targets: Sequence[np.ndarray]
  ) -> list[Call]:
    """What `logprobs` of one model runs.

    Args:
      params: the model, or its shapes.
      batches: as of `logprobs`, and so the others.
      positions: see there.
      targets: see there.
    """
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    kinds: dict[Any, list[Any]] = {}
    for batch in batches:
      rows = tuple(map(shape, (
          batch.tokens, batch.positions, batch.attention_mask)))
      kinds.setdefault(rows[0].shape, [rows, 0])[1] += 1
    out, hidden = [], None
    for (tokens, *rest), calls in kinds.values():
      if self._below is not None:
        out.append(Call(self._below, (params, tokens, *rest), calls, True))
        tokens = shape(jax.eval_shape(*out[-1][:1], *out[-1].args))
      out.append(Call(self._apply, (params, tokens, *rest), calls, False))
      hidden = jax.eval_shape(self._apply, *out[-1].args)
    if hidden is None:
      return []
    size = self._block_size(params, batches[0])
    return out + [Call(self._normalised, (
        params, jax.ShapeDtypeStruct((size, hidden.shape[-1]), hidden.dtype),
        jax.ShapeDtypeStruct((size, targets[0].shape[1]), jnp.int32)),
                       -(-sum(map(len, positions)) // size), False)]

  def logprobs(
      self, params: types.Params, batches: Sequence[packing.PackedBatch],
      positions: Sequence[np.ndarray], targets: Sequence[np.ndarray],
      kept: Kept | None = None) -> list[np.ndarray]:
    """Scores targets at positions of every segment.

    Args:
      params: the model.
      batches: packed segments.
      positions: per segment [m] int, positions in it that predict.
      targets: per segment [m, K] int, token ids scored at each position, of one K
        for all; entries that are padding hold any valid id.
      kept: from models that have `below` in common with this one.

    Returns:
      Per segment the log-probabilities [m, K] float32.
    """
    if not batches:
      return []
    size = self._block_size(params, batches[0])
    rows = self._rows(params, batches, positions, targets, kept or Kept(0))
    scored = []
    for hidden, wanted, count in _blocks(rows, size):
      block = self._normalised(params, hidden, wanted)
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
    """Places a block, such that their logits fit the budget."""
    hidden = jax.eval_shape(
        self._hidden, params, batch.tokens, batch.positions,
        batch.attention_mask)
    logits = jax.eval_shape(self._unembed, params, hidden)
    fit = self._logit_bytes // (4 * logits.shape[-1])
    return min(_MOST_POSITIONS, max(1, fit))

  def _hidden(self, params, tokens, *rest, keep=lambda make: make()):
    if self._below is None:
      return self._apply(params, tokens, *rest)
    x = keep(lambda: self._below(params, tokens, *rest))
    return self._apply(params, x, *rest)

  def _rows(
      self, params, batches, positions, targets, kept
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hidden states [m, D] and targets [m, K] to score, batch by batch."""
    for batch in progress.track(batches, 'scoring'):
      progress.count_tokens(sum(len(positions[s]) for s in batch.segments))
      hidden = sharding.to_host(self._hidden(
          params, batch.tokens, batch.positions, batch.attention_mask,
          keep=functools.partial(kept.get, batch)))
      index = np.concatenate([
          offset + positions[s]
          for s, offset in zip(batch.segments, batch.offsets)])
      wanted = np.concatenate([targets[s] for s in batch.segments])
      flat = hidden.reshape(-1, hidden.shape[-1])  # [B * T, D]
      yield flat[index], wanted.astype(np.int32)


def _blocks(
    rows: Iterator[tuple[np.ndarray, np.ndarray]], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Cuts rows anew into blocks of `size`, the last one padded.

  Yields:
    hidden [size, D], targets [size, K] and the number of rows not padding.
  """
  held = None
  for new in rows:
    held = new if held is None else tuple(
        np.concatenate(pair) for pair in zip(held, new))
    while len(held[0]) >= size:
      yield held[0][:size], held[1][:size], size
      held = held[0][size:], held[1][size:]
  if held is not None and len(held[0]):
    count = len(held[0])
    pad = ((0, size - count), (0, 0))
    yield np.pad(held[0], pad), np.pad(held[1], pad), count
