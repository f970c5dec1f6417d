"""EAP-IG scores of a model's nodes and edges on attribution pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import functools

import numpy as np

from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import stability as stability_lib
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.config import attribution as attribution_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models import config as model_config
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import stability

Pairs = Sequence[pairs_lib.AttributionPair]


def node_scores(
    options: attribution_config.AttributionConfig, model: loading.LoadedModel,
    pairs: Pairs) -> eap_ig.PairScores:
  """Scores of all nodes, pair by pair."""
  batches = pair_batches.to_score(pairs, options.batch, model.config)
  return eap_ig.score_pairs(
      model.config, model.params, batches, steps=options.steps)


def mean_node_scores(
    options: attribution_config.AttributionConfig, model: loading.LoadedModel,
    pairs: Pairs, *, keep_each: bool = False) -> types.PyTree:
  """Mean scores of nodes over the pairs that the model answers.

  Args:
    options: path steps, and most pairs in a batch.
    model: the model.
    pairs: P pairs.
    keep_each: whether to return the scores of each answered pair too.

  Returns:
    `means` by kind of node; `token_roles` [L, 2, P], the mean of
    `eap_ig.PairScores.token_roles`; `answered`, `metric_clean` and
    `metric_corrupt`, each [P]; and, if asked for, `each`.

  Raises:
    eap_ig.TooFewAnswered: the pairs do not elicit the knowledge.
  """
  scores = node_scores(options, model, pairs)
  kept, answered = eap_ig.keep_answered(scores)
  each = {'each': kept._asdict()} if keep_each else {}
  return {'means': eap_ig.node_means(kept, model.config),
          'token_roles': kept.token_roles.mean(0), 'answered': answered,
          'metric_clean': scores.metric_clean,
          'metric_corrupt': scores.metric_corrupt, **each}


def edge_scores(
    options: attribution_config.AttributionConfig, model: loading.LoadedModel,
    pairs: Pairs) -> Iterator[tuple[int, edges_lib.EdgeScores]]:
  """Yields each pair's index and its scores [S, G] and metrics."""
  score = functools.partial(
      edges_lib.pair_scores, model.config, model.params,
      points=edges_lib.eap_ig_points(options.steps))
  order, batches = edge_batches(options, pairs)
  rows = (edges_lib.EdgeScores(*row)
          for found in eap_ig.of_real_pairs(score, batches)
          for row in zip(*found))
  return zip(order, rows)


def edge_batches(
    options: attribution_config.AttributionConfig, pairs: Pairs
) -> tuple[np.ndarray, list[eap_ig.PairBatch]]:
  """The order of pairs by length, which pads least, and their batches."""
  order = np.argsort([len(p.clean_ids) for p in pairs], kind='stable')
  return order, pair_batches.pack(
      [pairs[i] for i in order], options.batch, one_per_row=True)


def mean_edge_scores(
    options: attribution_config.AttributionConfig, model: loading.LoadedModel,
    pairs: Pairs) -> np.ndarray:
  """Mean scores of edges over all pairs, float64 [S, G]."""
  total = np.zeros(edges_lib.is_edge(model.config).shape)
  for _, found in edge_scores(options, model, pairs):
    total += found.edges
  return total / len(pairs)


def edge_sums(
    options: attribution_config.AttributionConfig, model: loading.LoadedModel,
    pairs: Pairs, groups: Mapping[str, int]) -> dict[str, np.ndarray]:
  """Scores of edges, summed over the answered pairs of each group of facts.

  Scores of every edge and pair would take too much memory.

  Args:
    options: path steps, and pairs in a batch.
    model: the model.
    pairs: P pairs.
    groups: group of each fact.

  Returns:
    `totals` [groups, edges] float32, and `metrics` [P, 2] of the pairs' clean
    and corrupted prompts.
  """
  real = edges_lib.is_edge(model.config)
  totals = np.zeros((max(groups.values()) + 1, int(real.sum())), np.float32)
  metrics = np.zeros((len(pairs), 2))
  for i, found in edge_scores(options, model, pairs):
    metrics[i] = found.metric_clean, found.metric_corrupt
    if found.metric_clean > 0:
      totals[groups[pairs[i].fact]] += found.edges[real]
  return {'totals': totals, 'metrics': metrics}


def answered_sums(
    pairs: Pairs, groups: Mapping[str, int], totals: np.ndarray,
    metrics: np.ndarray) -> stability.GroupScores:
  """The answered pairs, with the sums that `edge_sums` returned for all."""
  kept = np.flatnonzero(metrics[:, 0] > 0)
  answered = [pairs[i] for i in kept]
  counts = np.bincount(
      [groups[p.fact] for p in answered], minlength=len(totals))
  clean, corrupt = metrics[kept].T
  return stability.GroupScores(
      answered, clean, corrupt, stability_lib.Sums(totals, counts))


def unflatten(row: np.ndarray, config: model_config.ModelConfig) -> np.ndarray:
  """Values of all edges in a row [edges], as [S, G] of sources by targets."""
  real = edges_lib.is_edge(config)
  out = np.zeros(real.shape, row.dtype)
  out[real] = row
  return out
