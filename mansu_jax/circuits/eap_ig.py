"""EAP-IG node scores: the effect of each neuron and head on the answer.

The score of neuron j is the sum over positions of (a_j - a'_j) times the mean
over k = 0..M-1 of dm/da_j at input embeddings e' + (k/M)(e - e'). Here a and a'
are its activations on the clean and the corrupted prompt, and
m = logit(answer) - logit(corrupted answer) at the last prompt position.
A positive score favours the clean answer. Heads are scored in the same way, at
the attention output before W_O (the score after it is equal).

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
  """The model answers too few pairs for meaningful scores."""


class PairBatch(NamedTuple):
  """Clean and corrupted prompts of B pairs, packed alike into R rows."""

  clean: types.Array  # [R, T] int32
  corrupt: types.Array  # [R, T] int32
  positions: types.Array  # [R, T] int32, within the prompt
  segments: types.Array  # [R, T] int32, index of the pair; -1 on padding
  last: types.Array  # [B] int32, last prompt token in the flattened rows
  answer: types.Array  # [B] int32, first token of the right answer
  corrupt_answer: types.Array  # [B] int32
  weight: types.Array  # [B] float32, 0 for padding pairs


class PairScores(NamedTuple):
  """Scores of every pair; positive scores favour the clean answer."""

  neurons: types.Array  # [B, L, F]
  heads: types.Array  # [B, L, N]
  metric_clean: types.Array  # [B]
  metric_corrupt: types.Array  # [B]
  token_roles: types.Array  # [B, L, 2, P], sums over heads, neurons, by role


def token_roles(batch: PairBatch) -> types.Array:
  """The role of each token in its prompt, an index into `TOKEN_ROLES`, [R, T].

  `changed`: tokens from the first to the last one in which the prompts of a
  pair differ (in prompts about facts, the subject). `after`: later tokens.
  `last`: the last token of the prompt, changed or not. Earlier tokens have role
  -1: a causal model has equal activations there on both prompts. Padding has
  any role.
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
    config: model_config.ModelConfig, params: types.Params,
    hidden: types.Array, batch: PairBatch) -> types.Array:
  """logit(answer) - logit(corrupted answer) at the last position, [B]."""
  flat = hidden.reshape(-1, hidden.shape[-1])  # [R * T, D]
  logits = decoder.unembed(config, params, flat[batch.last])  # [B, V]
  pairs = jnp.arange(batch.last.size)
  return logits[pairs, batch.answer] - logits[pairs, batch.corrupt_answer]


@functools.partial(jax.jit, static_argnames=('config', 'steps'))
def pair_scores(
    config: model_config.ModelConfig, params: types.Params, batch: PairBatch,
    *, steps: int) -> PairScores:
  """Node scores of one batch of pairs, not averaged.

  Args:
    config: the model's config.
    params: full params.
    batch: the pairs.
    steps: M, number of points on the straight path from the corrupted to the
      clean embeddings, without the clean end.

  Returns:
    Scores [B, ...] and both metrics.
  """
  with jax.default_matmul_precision('float32'):  # bfloat16 on TPU by default.
    return _pair_scores(config, params, batch, steps)


def _pair_scores(config, params, batch, steps):
  run = functools.partial(
      decoder.forward_with_taps, config, params, sites=SITES, remat=True,
      positions=batch.positions, segments=batch.segments)
  hidden, clean = run(batch.clean)
  hidden_corrupt, corrupt = run(batch.corrupt)
  delta = {site: clean[site] - corrupt[site] for site in SITES}
  embed = lambda tokens: decoder.embed(
      config, params, tokens, batch.positions).astype(jnp.float32)
  start = embed(batch.corrupt)  # [R, T, D]
  path = embed(batch.clean) - start

  def total_metric(taps, k):
    out, _ = run(embeddings=start + (k / steps) * path, perturbations=taps)
    return metric(config, params, out, batch).sum()

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
      metric_clean=metric(config, params, hidden, batch),
      metric_corrupt=metric(config, params, hidden_corrupt, batch),
      token_roles=jnp.einsum(
          'KLRT,RTB,RTP->BLKP', each, owner,
          jax.nn.one_hot(token_roles(batch), len(TOKEN_ROLES))))


def score_pairs(
    config: model_config.ModelConfig, params: types.Params,
    batches: list[PairBatch], *, steps: int) -> PairScores:
  """Node scores of all pairs, as NumPy arrays without padding pairs.

  Args:
    config: the model's config.
    params: full params.
    batches: batches of pairs, for example from `pair_batches.pack`.
    steps: M, number of points on the path.

  The example scores two pairs of random tokens on a random model.

  Example:
    >>> from mansu_jax.circuits import pair_batches
    >>> from mansu_jax.data import pairs
    >>> config = model_config.ModelConfig(
    ...     vocab_size=16, d_model=8, num_layers=1, num_heads=2, num_kv_heads=1,
    ...     d_head=4, d_ff=12)
    >>> params = decoder.init(config, jax.random.key(0))
    >>> made = [
    ...     pairs.AttributionPair((1, 2, 5), (1, 3, 5), 7, 8, fact='a'),
    ...     pairs.AttributionPair((1, 4, 5), (1, 2, 5), 9, 7, fact='b')]
    >>> scores = score_pairs(
    ...     config, params, pair_batches.pack(made, 2), steps=2)
    >>> scores.neurons.shape, scores.heads.shape  # [B, L, F] and [B, L, N]
    ((2, 1, 12), (2, 1, 2))
  """
  score = functools.partial(pair_scores, config, params, steps=steps)
  return jax.tree.map(
      lambda *xs: np.concatenate(xs), *of_real_pairs(score, batches))


def of_real_pairs(
    score: Callable[[PairBatch], types.PyTree], batches: Iterable[PairBatch]
) -> Iterator[types.PyTree]:
  """Yields the scores of each batch, as NumPy arrays without padding pairs.

  Args:
    score: scores a batch; returns arrays with one row per pair.
    batches: batches of pairs.
  """
  for batch in progress.track(batches, 'scores of pairs'):
    progress.count_tokens(2 * (np.asarray(batch.segments) >= 0).sum())
    real = np.asarray(batch.weight) > 0
    yield jax.tree.map(
        lambda x, real=real: x[real], sharding.to_host(score(batch)))


def keep_answered(scores: PairScores) -> tuple[PairScores, np.ndarray]:
  """Keeps the pairs in which the model prefers the right answer.

  Returns:
    The kept scores, and the mask [B] of kept pairs.

  Raises:
    TooFewAnswered: no pair is answered, or the mean clean metric does not
      exceed the mean corrupted metric: the prompts do not elicit the knowledge.
  """
  answered = scores.metric_clean > 0
  clean, corrupt = scores.metric_clean.mean(), scores.metric_corrupt.mean()
  if not answered.any() or clean <= corrupt:
    swapped = (' Are answer and corrupted answer swapped? The metric is'
               ' above 0 on corrupted prompts and below 0 on clean ones.'
               ) if clean < 0 < corrupt else ''
    raise TooFewAnswered(
        f'The model answers {int(answered.sum())} of {answered.size}'
        f' attribution pairs and its mean metric is {clean:.3f} on clean and'
        f' {corrupt:.3f} on corrupted prompts; wanted clean above corrupted.'
        f'{swapped} These prompts do not elicit the knowledge: give other'
        ' pairs (--attribution_pairs_file=FILE), or check the forget set.')
  return jax.tree.map(lambda x: x[answered], scores), answered


def node_means(
    scores: PairScores, config: model_config.ModelConfig
) -> dict[str, np.ndarray]:
  """Mean scores by kind; a key/value head gets the sum of its query heads.

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
