"""EAP-IG node scores: what each neuron and head adds to the right answer.

Score of neuron j: sum over positions of (a_j - a'_j) times the mean over
k = 0..M-1 of dm/da_j, with input embeddings e' + (k/M)(e - e'); a and a' are
its activations under the clean and the corrupted prompt, and
m = logit(answer) - logit(corrupted answer) at the last prompt position.
A positive score helps the clean answer. Heads likewise, at the attention
output before W_O (the same number as after it).

References:
  Hanna et al., Have Faith in Faithfulness, 2024 (arXiv 2403.17806)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import sites as sites_lib
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding

_NEURON = sites_lib.Site.MLP_HIDDEN
_HEAD = sites_lib.Site.HEAD_OUT
SITES = (_NEURON, _HEAD)
TOKEN_ROLES = ('changed', 'after', 'last')  # See `token_roles`.


class TooFewAnswered(ValueError):
  """The base answers too few pairs for scores to mean anything."""


class PairBatch(NamedTuple):
  """Clean and corrupted prompts of B pairs, packed alike into R rows."""

  clean: types.Array  # [R, T] int32
  corrupt: types.Array  # [R, T] int32
  positions: types.Array  # [R, T] int32, within the prompt
  segments: types.Array  # [R, T] int32, which pair; -1 on padding
  last: types.Array  # [B] int32, the prompt's end in the flattened rows
  answer: types.Array  # [B] int32, first token of the right answer
  corrupt_answer: types.Array  # [B] int32
  weight: types.Array  # [B] float32, 0 on filled-up rows


class PairScores(NamedTuple):
  """Scores of every pair; positive helps the clean answer."""

  neurons: types.Array  # [B, L, F]
  heads: types.Array  # [B, L, N]
  metric_clean: types.Array  # [B]
  metric_corrupt: types.Array  # [B]
  token_roles: types.Array  # [B, L, 2, P], sums over heads and over neurons by place


def token_roles(batch: PairBatch) -> types.Array:
  """Where in its prompt each token stands, an index into `TOKEN_ROLES`, [R, T].

  `changed` is all from the first to the last token in which the prompts of a
  pair differ (the subject, of prompts about facts), `after` what stands behind
  it, and `last` the prompt's end, changed or not. What stands before it is -1:
  a causal model is the same there on both prompts. Padding counts as any.
  """
  pairs, own = batch.last.size, batch.segments
  differ = (batch.clean != batch.corrupt) & (own >= 0)
  extreme = lambda reduce, values: reduce(
      values.ravel(), own.ravel() % (pairs + 1), pairs + 1)[own]
  length = own.shape[1]
  first = extreme(jax.ops.segment_min, jnp.where(
      differ, batch.positions, length))
  final = extreme(jax.ops.segment_max, jnp.where(differ, batch.positions, -1))
  ends = jnp.arange(own.size).reshape(own.shape) == batch.last[own]
  return jnp.select(
      [ends, batch.positions < first, batch.positions <= final], [2, -1, 0], 1)


def metric(
    params: types.Params, hidden: types.Array, batch: PairBatch) -> types.Array:
  """logit(answer) - logit(corrupted answer) at the last position, [B]."""
  flat = hidden.reshape(-1, hidden.shape[-1])  # [R * T, D]
  logits = decoder.unembed(params, flat[batch.last])  # [B, V]
  pairs = jnp.arange(batch.last.size)
  return logits[pairs, batch.answer] - logits[pairs, batch.corrupt_answer]


@functools.partial(jax.jit, static_argnames=('config', 'steps'))
def pair_scores(
    config: model_config.ModelConfig, params: types.Params, batch: PairBatch,
    *, steps: int) -> PairScores:
  """Node scores of one batch of pairs, not yet averaged.

  Args:
    config: the model's.
    params: full params.
    batch: the pairs.
    steps: M, points on the straight path from the corrupted embeddings; the
      clean end is never sampled.

  Returns:
    Scores [B, ...] and both metrics.
  """
  with jax.default_matmul_precision('float32'):  # On TPU it is bfloat16.
    return _pair_scores(config, params, batch, steps)


def _pair_scores(config, params, batch, steps):
  run = functools.partial(
      decoder.forward_with_taps, config, params, sites=SITES, remat=True,
      positions=batch.positions, segments=batch.segments)
  hidden, clean = run(batch.clean)
  hidden_corrupt, corrupt = run(batch.corrupt)
  delta = {site: clean[site] - corrupt[site] for site in SITES}
  embed = lambda tokens: decoder.embed(params, tokens).astype(jnp.float32)
  start = embed(batch.corrupt)  # [R, T, D]
  path = embed(batch.clean) - start

  def total_metric(taps, k):
    out, _ = run(embeddings=start + (k / steps) * path, perturbations=taps)
    return metric(params, out, batch).sum()

  def add_step(total, k):
    grads = jax.grad(total_metric)(jax.tree.map(jnp.zeros_like, delta), k)
    return jax.tree.map(jnp.add, total, grads), None

  zeros = jax.tree.map(jnp.zeros_like, delta)
  grads, _ = jax.lax.scan(add_step, zeros, jnp.arange(steps, dtype=jnp.float32))
  owner = jax.nn.one_hot(batch.segments, batch.last.size)  # [R, T, B]
  neurons = delta[_NEURON] * grads[_NEURON] / steps  # [L, R, T, F]
  heads = (delta[_HEAD] * grads[_HEAD]).sum(-1) / steps  # [L, R, T, N]
  each = jnp.stack([heads.sum(-1), neurons.sum(-1)])  # [2, L, R, T]
  return PairScores(
      neurons=jnp.einsum('LRTF,RTB->BLF', neurons, owner),
      heads=jnp.einsum('LRTN,RTB->BLN', heads, owner),
      metric_clean=metric(params, hidden, batch),
      metric_corrupt=metric(params, hidden_corrupt, batch),
      token_roles=jnp.einsum(
          'KLRT,RTB,RTP->BLKP', each, owner,
          jax.nn.one_hot(token_roles(batch), len(TOKEN_ROLES))))


def score_pairs(
    config: model_config.ModelConfig, params: types.Params,
    batches: list[PairBatch], *, steps: int) -> PairScores:
  """Scores of all pairs of the batches, as NumPy, filled-up rows removed."""
  score = functools.partial(pair_scores, config, params, steps=steps)
  return jax.tree.map(
      lambda *xs: np.concatenate(xs), *of_real_pairs(score, batches))


def of_real_pairs(
    score: Callable[[PairBatch], types.PyTree], batches: Iterable[PairBatch]
) -> Iterator[types.PyTree]:
  """Each batch's scores, as NumPy, without those of filled-up rows.

  Args:
    score: from a batch to arrays with one row a pair.
    batches: of pairs.
  """
  for batch in progress.track(batches, 'scores of pairs'):
    progress.count_tokens(2 * (np.asarray(batch.segments) >= 0).sum())
    real = np.asarray(batch.weight) > 0
    yield jax.tree.map(
        lambda x, real=real: x[real], sharding.to_host(score(batch)))


def keep_answered(scores: PairScores) -> tuple[PairScores, np.ndarray]:
  """Keeps the pairs whose right answer the model prefers to the other.

  Returns:
    The kept scores and the mask [B] of kept pairs.

  Raises:
    TooFewAnswered: no pair is answered, or the mean clean metric does not
      exceed the mean corrupted one: the prompts do not elicit the knowledge.
  """
  answered = scores.metric_clean > 0
  clean, corrupt = scores.metric_clean.mean(), scores.metric_corrupt.mean()
  if not answered.any() or clean <= corrupt:
    swapped = (' Are answer and corrupted answer exchanged? The metric is'
               ' above 0 on corrupted prompts and below it on clean ones.'
               ) if clean < 0 < corrupt else ''
    raise TooFewAnswered(
        f'The model answers {int(answered.sum())} of {answered.size}'
        f' attribution pairs and its mean metric is {clean:.3f} on clean and'
        f' {corrupt:.3f} on corrupted prompts; wanted clean above corrupted.'
        f'{swapped} These prompts do not elicit the knowledge: give others with'
        ' --attribution_pairs_file=FILE, or check the forget set.')
  return jax.tree.map(lambda x: x[answered], scores), answered


def node_means(
    scores: PairScores, config: model_config.ModelConfig
) -> dict[str, np.ndarray]:
  """Mean over pairs by kind of node; a key/value head sums over its group.

  Returns:
    `neurons` [L, F], `heads` [L, N], `kv_heads` [L, K].
  """
  heads = scores.heads.mean(0)
  groups = heads.reshape(heads.shape[0], config.num_kv_heads, -1)
  return {
      'neurons': scores.neurons.mean(0),
      'heads': heads,
      'kv_heads': groups.sum(-1),
  }
