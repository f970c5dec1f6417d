"""How circuits of nodes are scored, selected and run for `stability`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.circuits import stability as stability_lib
from mansu_jax.models import config as model_config
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import scoring
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.circuit import stability

Settings = settings_lib.Settings


class Nodes:
  """Numbers the candidate nodes of a circuit from 0 to n - 1."""

  def __init__(self, settings: Settings, config: model_config.ModelConfig):
    self._config = config
    self._kinds = select.candidate_kinds(
        settings.attribution.level, for_edit=settings.for_edit)
    self._layers = select.layer_range(settings.circuit, config.num_layers)

  def flatten(self, nodes: Any) -> np.ndarray:
    """From arrays [..., L, nodes] by kind to one array [..., n]."""
    parts = [nodes[kind][..., self._layers, :] for kind in self._kinds]
    return np.concatenate([  # A size of -1 would fail if there is no pair.
        p.reshape(*p.shape[:-2], p.shape[-2] * p.shape[-1]) for p in parts], -1)

  def unflatten(self, row: np.ndarray) -> dict[str, np.ndarray]:
    """From a row [n] to arrays [L, nodes] by kind; 0 for other nodes."""
    out, start = {}, 0
    for kind, shape in graph.shapes(self._config).items():
      out[kind] = np.zeros(shape, row.dtype)
      if kind in self._kinds:
        part = out[kind][self._layers]
        stop = start + part.size
        out[kind][self._layers] = row[start:stop].reshape(part.shape)
        start = stop
    return out

  def of_pairs(self, scores: eap_ig.PairScores) -> np.ndarray:
    """Scores of each pair, [P, n]."""
    heads, kv_heads = scores.heads, self._config.num_kv_heads
    grouped = heads.reshape(
        *heads.shape[:2], kv_heads, heads.shape[2] // kv_heads)
    return self.flatten({'neurons': scores.neurons, 'heads': heads,
                         'kv_heads': grouped.sum(-1)})


def make(
    settings: Settings, model: loading.LoadedModel, circuit: graph.Circuit,
    choose: Callable[[dict[str, np.ndarray]], graph.Circuit],
    make_measure: Callable[[stability.Pairs], faithfulness.Faithfulness],
    groups: dict[str, int], pairs: stability.Pairs, scores: eap_ig.PairScores
) -> stability.Selected:
  """A circuit of nodes, with its selection and scores.

  Args:
    settings: level, layers, and path steps.
    model: the base model.
    circuit: the circuit, selected from the scores.
    choose: selects a circuit by mean scores by kind.
    make_measure: makes what measures circuits on some pairs.
    groups: group of each fact of all pairs that will be scored.
    pairs: P pairs that the model answers.
    scores: their scores.
  """
  nodes = Nodes(settings, model.config)
  layers = select.layer_range(settings.circuit, model.config.num_layers)
  unflatten = lambda row: graph.Circuit(**nodes.unflatten(row))

  def collect(pairs: stability.Pairs, scores: eap_ig.PairScores):
    index = np.array([groups[p.fact] for p in pairs], int)
    return stability.GroupScores(
        pairs, scores.metric_clean, scores.metric_corrupt,
        stability_lib.sum_by_group(
            nodes.of_pairs(scores), index, max(groups.values()) + 1))

  def score(pairs: stability.Pairs) -> stability.GroupScores:
    found = scoring.node_scores(settings.attribution, model, pairs)
    answered = found.metric_clean > 0
    return collect([p for p, is_kept in zip(pairs, answered) if is_kept],
                   eap_ig.PairScores(*(x[answered] for x in found)))

  def make_run(pairs: stability.Pairs) -> stability.Run:
    measure = make_measure(pairs)
    return lambda row: measure.metrics(unflatten(row))

  return stability.Selected(stability.Method(
      groups=groups, reference=nodes.flatten(circuit), score=score,
      make_run=make_run, unflatten=unflatten,
      select=lambda means: nodes.flatten(choose(nodes.unflatten(means))),
      draw=lambda rng: nodes.flatten(
          select.matched_random(circuit, layers, rng))
  ), collect(pairs, scores))
