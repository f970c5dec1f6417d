"""Where inside a model can an answer be read? A linear lens on every layer.

Scores of attribution do not say by themselves whether knowledge has gone or
only its way out: they sum to what the output says, so that they fade with the
answer, whoever hid it. This looks at the states instead. At every layer
a linear map from the residual stream to the final hidden state, both at a
prompt's last token, is fitted on facts that are retained, and read on facts
that are forgotten, which it has never seen: what it finds there is in the
state, and not in the map. An edit late in the model that hides an answer leaves
it readable in all the layers before.

The map is the tuned lens (Belrose et al.), by ridge regression in place of
gradient descent, of answers' first tokens in place of all tokens. It is fitted
to the model that it reads, so that a model which only turned its states is read
as well as before. It sees the last token alone: an answer that stays at the
subject, and is not moved on, it does not see.

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
from mansu_jax.models import sites as sites_lib
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding

_SITES = (sites_lib.Site.RESIDUAL, sites_lib.Site.ATTN_OUT)
_ROWS = 16  # Rows run at once,
_WIDTH = 64  # of as many tokens, or what the longest prompt needs,
_MULTIPLE = 8  # in multiples of this.
_PLACES = 64  # What is kept of a batch is padded to multiples of this.
RIDGE = 1e-3  # Of the states' mean variance.
# On TPU products are of bfloat16 parts by default.
_EXACT = functools.partial(jax.default_matmul_precision, 'float32')


class States(NamedTuple):
  """What a model holds at the last token of n prompts."""

  layers: np.ndarray  # [n, L + 1, D], the embedding, and after each layer
  last: np.ndarray  # [n, D], before the last layer's MLP and its norm
  final: np.ndarray  # [n, D], after the final norm

  def take(self, rows: np.ndarray | slice) -> States:
    """Those of some prompts."""
    return States(*(x[rows] for x in self))


@functools.partial(jax.jit, static_argnames='config')
def at_ends(config, params, rows, ends):
  """States at the places `ends` [P] of flattened rows [B * T]."""
  with _EXACT():
    hidden, taps = decoder.forward_with_taps(
        config, params, rows.tokens, sites=_SITES, positions=rows.positions,
        segments=rows.segments)
  take = lambda x: x.reshape(-1, x.shape[-1])[ends]
  residual = taps[sites_lib.Site.RESIDUAL]  # [L, B, T, D]
  first = take(
      decoder.embed(params, rows.tokens).astype(residual.dtype))
  layers = jnp.concatenate([first[None], jax.vmap(take)(residual)])
  last = layers[-2] + take(taps[sites_lib.Site.ATTN_OUT][-1])
  return jnp.moveaxis(layers, 0, 1), last, take(hidden)


class _Rows(NamedTuple):
  """Packed prompts."""

  tokens: np.ndarray  # [B, T] int32
  positions: np.ndarray  # [B, T] int32
  segments: np.ndarray  # [B, T] int32, -1 on padding


class _Batch(NamedTuple):
  """Rows that are run at once, and what is in them."""

  rows: _Rows
  ends: np.ndarray  # [P] int, places of last tokens; the rest repeat the first
  members: list[int]  # Which prompts end at the first of them


def states(
    config: model_config.ModelConfig, params: types.Params,
    prompts: Sequence[Sequence[int]]) -> States:
  """Runs prompts and keeps what is at their last tokens.

  Args:
    config: the model's.
    params: full params.
    prompts: n lists of token ids, none empty.
  """
  return States(*_each(batches_of(prompts), lambda batch: at_ends(
      config, params, batch.rows, batch.ends)))


class UpperLayers:
  """Final states of models that have their first layers in common.

  These layers are run once, of the first model, and kept on the host: [n
  tokens, D] in all.
  """

  def __init__(
      self, config: model_config.ModelConfig,
      prompts: Sequence[Sequence[int]], common: int):
    """Packs the prompts.

    Args:
      config: the models'.
      prompts: n lists of token ids, none empty.
      common: how many layers, from the lowest on, and the embeddings; of 0
        these may differ, and nothing is kept.
    """
    self._config, self._common = config, common
    self._batches, self._below = batches_of(prompts), None

  def __call__(self, params: types.Params) -> np.ndarray:
    """A model's states after the final norm, at last tokens, [n, D]."""
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
  """What enters layer `common`, of batches as of `batches_of`."""
  with _EXACT():
    return decoder.run_prefix(
        config, params, rows.tokens, layer=common, positions=rows.positions,
        segments=rows.segments)


@functools.partial(jax.jit, static_argnames=('config', 'common'))
def final(config, params, below, rows, ends, common):
  """Goes on from what enters layer `common`; None: from the tokens."""
  start = {'tokens': rows.tokens} if below is None else {'embeddings': below}
  with _EXACT():
    hidden = decoder.forward(
        config, params, **start, first_layer=common, positions=rows.positions,
        segments=rows.segments)
  return hidden.reshape(-1, hidden.shape[-1])[ends]


def batches_of(prompts: Sequence[Sequence[int]]) -> list[_Batch]:
  """Batches of one shape."""
  lengths = [len(p) for p in prompts]
  width = -(-max(_WIDTH, *lengths) // _MULTIPLE) * _MULTIPLE
  filled = packing.fill_rows(lengths, width)
  rows = sharding.round_up_rows(_ROWS)
  batches = [filled[i:i + rows] for i in range(0, len(filled), rows)]
  most = max(sum(map(len, batch)) for batch in batches)
  most = -(-most // _PLACES) * _PLACES
  packed = (_pack(prompts, batch, rows, width) for batch in batches)
  return [_Batch(rows, np.pad(ends, (0, most - len(ends))), members)
          for rows, ends, members in packed]


def _each(
    batches: Sequence[_Batch], run: Callable[[_Batch], Sequence[types.Array]]
) -> list[np.ndarray]:
  """What runs of all batches give [P, ...], of prompts in their order."""
  parts = []
  for batch in progress.track(batches, 'states at prompts'):
    progress.count_tokens((np.asarray(batch.rows.segments) >= 0).sum())
    parts.append([x[:len(batch.members)] for x in sharding.to_host(run(batch))])
  back = np.argsort([i for batch in batches for i in batch.members])
  return [np.concatenate(x)[back] for x in zip(*parts)]


def _pack(
    prompts: Sequence[Sequence[int]], batch: Sequence[Sequence[int]],
    rows: int, width: int) -> tuple[_Rows, np.ndarray, list[int]]:
  """Rows of some prompts, where each ends in them, and which it is."""
  tokens, positions = np.zeros((2, rows, width), np.int32)
  segments = np.full((rows, width), -1, np.int32)
  ends, members = [], []
  for row, chosen in enumerate(batch):
    start = 0
    for i in chosen:
      stop = start + len(prompts[i])
      tokens[row, start:stop] = prompts[i]
      positions[row, start:stop] = np.arange(stop - start)
      segments[row, start:stop] = len(members)
      ends.append(row * width + stop - 1)
      members.append(i)
      start = stop
  return _Rows(tokens, positions, segments), np.array(ends), members


def predict(
    train: np.ndarray, target: np.ndarray, test: np.ndarray,
    ridge: float = RIDGE) -> np.ndarray:
  """Ridge regression from states to states, in its dual form.

  Args:
    train: [n, D] states.
    target: [n, E] what they should give.
    test: [m, D] states to read.
    ridge: penalty, of the mean variance of a coordinate of `train`.

  Returns:
    [m, E].
  """
  train, target, test = (x.astype(np.float64) for x in (train, target, test))
  middle, bias = train.mean(0), target.mean(0)
  train, test = train - middle, test - middle
  penalty = ridge * len(train) * max(np.mean(train**2), 1e-30)
  gram = train @ train.T + penalty * np.eye(len(train))
  return test @ (train.T @ np.linalg.solve(gram, target - bias)) + bias


def says(
    final: np.ndarray, table: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """The choice that a state is nearest to.

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
  """What each layer says of each question.

  Args:
    fit: states of the prompts that the lens is fitted on.
    asked: of m questions.
    table: [V, D], the unembedding.
    tokens: [U] int, those that are asked for.

  Returns:
    [L + 1, m, U] float32 logits; the last layer's are the model's own.
  """
  vectors = np.float64(sharding.to_host(table[tokens]))  # [U, D]
  inner = [predict(fit.layers[:, layer], fit.final, asked.layers[:, layer])
           for layer in range(fit.layers.shape[1] - 1)]
  return np.stack([(states @ vectors.T).astype(np.float32)
                   for states in (*inner, asked.final)])
