"""A linear lens on every layer: where inside a model can an answer be read?

Attribution scores alone do not show whether knowledge is gone or only its path
to the output: they sum to the output, so they fade with the answer, however it
was hidden. The lens reads hidden states instead. At every layer it fits a
linear map from the residual stream to the final hidden state, both at a
prompt's last token, on retained facts, and applies it to forgotten facts, which
the map has never seen: an answer that it finds is in the state, not in the map.
An edit of late layers that hides an answer leaves it readable in earlier ones.

The map is the tuned lens (Belrose et al.) with ridge regression instead of
gradient descent, on the first tokens of answers instead of all tokens. It is
fitted to the model that it reads, so rotating the states of a model does not
hide them. It reads the last token only, and misses an answer that stays at the
subject's tokens.

References:
  nostalgebraist, interpreting GPT: the logit lens, 2020
  Belrose et al., Eliciting Latent Predictions from Transformers with the Tuned
  Lens, 2023 (arXiv 2303.08112)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.data import packing
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layers as layers_lib
from mansu_jax.models import sites as sites_lib
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding

_SITES = (sites_lib.Site.RESIDUAL, sites_lib.Site.ATTN_OUT)
_ROWS = 16  # Rows in a batch.
_WIDTH = 64  # Tokens in a row; more if the longest prompt needs more.
_ENDS = 64  # The number of prompts in a batch is padded to a multiple of this.
RIDGE = 1e-3  # Penalty, as a share of the states' mean variance.
# By default, TPUs multiply in bfloat16.
_EXACT = functools.partial(jax.default_matmul_precision, 'float32')


class States(NamedTuple):
  """Hidden states at the last token of n prompts."""

  layers: np.ndarray  # [n, L + 1, D], embedding, and state after each layer
  last: np.ndarray  # [n, D], before the norm and MLP of the last layer
  final: np.ndarray  # [n, D], after the final norm

  def take(self, rows: np.ndarray | slice) -> States:
    """The states of some prompts."""
    return States(*(x[rows] for x in self))


@functools.partial(jax.jit, static_argnames='config')
def at_ends(config, params, rows, ends):
  """States at the positions `ends` [P] of flattened rows [B * T]."""
  with _EXACT():
    hidden, taps = decoder.forward_with_taps(
        config, params, rows.tokens, sites=_SITES, positions=rows.positions,
        segments=rows.segments)
  take = lambda x: x.reshape(-1, x.shape[-1])[ends]
  residual = taps[sites_lib.Site.RESIDUAL]  # [L, B, T, D]
  first = take(decoder.embed(
      config, params, rows.tokens, rows.positions).astype(residual.dtype))
  layers = jnp.concatenate([first[None], jax.vmap(take)(residual)])
  last = layers_lib.mlp_reads(
      config, layers[-2],
      layers[-2] + take(taps[sites_lib.Site.ATTN_OUT][-1]))
  return jnp.moveaxis(layers, 0, 1), last, take(hidden)


class _Rows(NamedTuple):
  """Packed prompts."""

  tokens: np.ndarray  # [B, T] int32
  positions: np.ndarray  # [B, T] int32
  segments: np.ndarray  # [B, T] int32, -1 on padding


class _Batch(NamedTuple):
  """Packed rows that run together, and the prompts in them."""

  rows: _Rows
  ends: np.ndarray  # [P] int, positions of last tokens, padded with 0
  members: list[int]  # Index of the prompt that ends at each position


def states(
    config: model_config.ModelConfig, params: types.Params,
    prompts: Sequence[Sequence[int]]) -> States:
  """Runs prompts and returns the states at their last tokens.

  Args:
    config: the model's config.
    params: full params.
    prompts: n lists of token ids, none empty.
  """
  return States(*_each(batches_of(prompts), lambda batch: at_ends(
      config, params, batch.rows, batch.ends)))


class UpperLayers:
  """Final states of models that share their first layers.

  The shared layers run once, with the first model; their outputs, [tokens, D],
  stay in host memory.
  """

  def __init__(
      self, config: model_config.ModelConfig,
      prompts: Sequence[Sequence[int]], common: int):
    """Packs the prompts.

    Args:
      config: the models' config.
      prompts: n lists of token ids, none empty.
      common: number of shared layers; with 0 the embeddings may differ too.
    """
    self._config, self._common = config, common
    self._batches, self._below = batches_of(prompts), None

  def __call__(self, params: types.Params) -> np.ndarray:
    """A model's states after the final norm at last tokens, [n, D]."""
    if self._below is None:
      self._below = [sharding.to_host(run_prefix(
          self._config, params, batch.rows, self._common))
                     for batch in self._batches] if self._common else (
                         [None] * len(self._batches))
    below = iter(self._below)
    found, = _each(self._batches, lambda batch: (final(
        self._config, params, next(below), batch.rows, batch.ends,
        self._common),))
    return found


@functools.partial(jax.jit, static_argnames=('config', 'common'))
def run_prefix(config, params, rows, common):
  """Runs the layers below `common`; returns their output [B, T, D]."""
  with _EXACT():
    return decoder.run_prefix(
        config, params, rows.tokens, layer=common, positions=rows.positions,
        segments=rows.segments)


@functools.partial(jax.jit, static_argnames=('config', 'common'))
def final(config, params, below, rows, ends, common):
  """Runs layers from `common` on; `below` None: starts at the tokens."""
  start = {'tokens': rows.tokens} if below is None else {'embeddings': below}
  with _EXACT():
    hidden = decoder.forward(
        config, params, **start, first_layer=common, positions=rows.positions,
        segments=rows.segments)
  return hidden.reshape(-1, hidden.shape[-1])[ends]


def batches_of(prompts: Sequence[Sequence[int]]) -> list[_Batch]:
  """Packs prompts into batches of one shape."""
  lengths = [len(p) for p in prompts]
  width = packing.round_up(max(_WIDTH, *lengths))
  filled = packing.fill_rows(lengths, width)
  rows = sharding.round_up_rows(_ROWS)
  batches = [filled[i:i + rows] for i in range(0, len(filled), rows)]
  most = max(sum(map(len, batch)) for batch in batches)
  most = packing.round_up(most, _ENDS)
  packed = (_pack(prompts, batch, rows, width) for batch in batches)
  return [_Batch(rows, np.pad(ends, (0, most - len(ends))), members)
          for rows, ends, members in packed]


def _each(
    batches: Sequence[_Batch], run: Callable[[_Batch], Sequence[types.Array]]
) -> list[np.ndarray]:
  """Outputs [P, ...] of all batches, in the order of the prompts."""
  parts = []
  for batch in progress.track(batches, 'states at prompts'):
    progress.count_tokens((np.asarray(batch.rows.segments) >= 0).sum())
    parts.append([x[:len(batch.members)] for x in sharding.to_host(run(batch))])
  back = np.argsort([i for batch in batches for i in batch.members])
  return [np.concatenate(x)[back] for x in zip(*parts)]


def _pack(
    prompts: Sequence[Sequence[int]], batch: Sequence[Sequence[int]],
    rows: int, width: int) -> tuple[_Rows, np.ndarray, list[int]]:
  """The rows of a batch, and the end position and index of each prompt."""
  lengths = {i: len(prompts[i]) for row in batch for i in row}
  layout = packing.lay_out(lengths, batch, (rows, width))
  packed = _Rows(layout.write(prompts), layout.positions(),
                 layout.segment_ids())
  return packed, layout.last, layout.members.tolist()


def predict(
    train: np.ndarray, target: np.ndarray, test: np.ndarray,
    ridge: float = RIDGE) -> np.ndarray:
  """Ridge regression from states to states, in its dual form.

  Args:
    train: [n, D] states.
    target: [n, E] targets.
    test: [m, D] states to map.
    ridge: penalty, as a share of the mean variance of a coordinate of `train`.

  Returns:
    Predictions [m, E].
  """
  train, target, test = (x.astype(np.float64) for x in (train, target, test))
  middle, bias = train.mean(0), target.mean(0)
  train, test = train - middle, test - middle
  penalty = ridge * len(train) * max(np.mean(train**2), 1e-30)
  gram = train @ train.T + penalty * np.eye(len(train))
  return test @ (train.T @ np.linalg.solve(gram, target - bias)) + bias


def says(
    final: np.ndarray, table: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """The choice with the largest logit.

  Args:
    final: [m, D], states after the final norm.
    table: [V, D], the unembedding.
    choices: [m, C] int, first tokens of the choices.

  Returns:
    [m] int.
  """
  vectors = np.float64(sharding.to_host(table[choices]))  # [m, C, D]
  return np.einsum('mD,mCD->mC', final, vectors).argmax(1)


def read(
    fit: States, asked: States, table: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
  """The logits that the lens reads from each layer.

  Args:
    fit: states of the prompts to fit the lens on.
    asked: states of m questions.
    table: [V, D], the unembedding.
    tokens: [U] int, first tokens of the choices.

  Returns:
    [L + 1, m, U] float32 logits; those of the last layer are the model's own.
  """
  vectors = np.float64(sharding.to_host(table[tokens]))  # [U, D]
  inner = [predict(fit.layers[:, layer], fit.final, asked.layers[:, layer])
           for layer in range(fit.layers.shape[1] - 1)]
  return np.stack([(states @ vectors.T).astype(np.float32)
                   for states in (*inner, asked.final)])
