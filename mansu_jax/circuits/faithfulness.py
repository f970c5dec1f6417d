"""Faithfulness: the share of a behaviour that a circuit carries.

All candidate nodes or edges outside the circuit take their activations from
the corrupted prompt. With m the metric summed over pairs,

  faithfulness = (m_circuit - m_corrupt) / (m_clean - m_corrupt)

1 is the whole behaviour, 0 none of it. `of_nodes` measures circuits of nodes,
`edge_faithfulness.of_edges` circuits of edges. A circuit of neurons leaves
attention unpatched, and a range of layers leaves all other layers unpatched.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import sites as sites_lib
from mansu_jax.runtime import sharding

_NOISE = 1e-3  # Smallest spread, as a share of the metrics, beyond float noise.
_SITE = {'neurons': sites_lib.Site.MLP_HIDDEN,
         'heads': sites_lib.Site.HEAD_OUT}
_Circuit = TypeVar('_Circuit')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faithfulness(Generic[_Circuit]):
  """Measures circuits of nodes or of edges on fixed pairs.

  Attributes:
    metrics: runs a circuit; returns the metric of each pair, [P].
    total: sums metrics [P] over the pairs.
    clean: the total on the clean prompts.
    corrupt: the total on the corrupted prompts.
    pairs: number of pairs.
  """

  metrics: Callable[[_Circuit], np.ndarray]
  total: Callable[[np.ndarray], float]
  clean: float
  corrupt: float
  pairs: int

  def __call__(self, circuit: _Circuit) -> float:
    """The faithfulness of a circuit.

    Raises:
      ValueError: as `spread`.
    """
    span = spread(self.clean, self.corrupt, self.pairs)
    return float((self.total(self.metrics(circuit)) - self.corrupt) / span)


def spread(clean: float, corrupt: float, pairs: int) -> float:
  """The denominator of faithfulness: clean less corrupted metric.

  Args:
    clean: metric summed over pairs, on the clean prompts.
    corrupt: the same on the corrupted prompts.
    pairs: number of pairs.

  Raises:
    ValueError: the difference is not positive, or is float noise.
  """
  if clean - corrupt > _NOISE * (abs(clean) + abs(corrupt)):
    return clean - corrupt
  raise ValueError(
      f'Faithfulness cannot be measured on the first {pairs} pairs that the'
      ' model answers (--circuit_pairs): their mean metric, logit(answer) -'
      f' logit(corrupted answer), is {clean / pairs:.4g} on the clean and'
      f' {corrupt / pairs:.4g} on the corrupted prompts; wanted a higher one on'
      ' the clean prompts. Give pairs whose corrupted prompts ask for the'
      ' corrupted answer (--attribution_pairs_file), or raise --circuit_pairs.')


@functools.partial(jax.jit, static_argnames='config')
def patched_metric(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch, corrupt: types.Params, keep: types.Params
) -> types.Array:
  """The metric of each pair with all nodes but `keep` corrupted, [B]."""
  patches = {site: {'keep': keep[site], 'value': corrupt[site]}
             for site in keep}
  with jax.default_matmul_precision('float32'):  # As the scores.
    hidden = decoder.forward_patched(
        config, params, batch.clean, patches=patches,
        positions=batch.positions, segments=batch.segments)
    return eap_ig.metric(config, params, hidden, batch)


@functools.partial(jax.jit, static_argnames='config')
def corrupted(config, params, batch):
  """Summed metric and activations of the corrupted prompts."""
  with jax.default_matmul_precision('float32'):
    hidden, taps = decoder.forward_with_taps(
        config, params, batch.corrupt, sites=eap_ig.SITES,
        positions=batch.positions, segments=batch.segments)
    scores = eap_ig.metric(config, params, hidden, batch)
  return jnp.sum(scores * batch.weight), taps


def of_nodes(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch, level: str, layers: range
) -> Faithfulness[graph.Circuit]:
  """Faithfulness of circuits of nodes.

  Args:
    config: the model's config.
    params: full params.
    batch: one batch of pairs that the model answers; pairs of weight 0 do not
      count.
    level: a key of `graph.LEVEL_KINDS`; only its kinds are patched.
    layers: the layers that are patched.
  """
  outside = ~np.isin(np.arange(config.num_layers), layers)[:, None]
  kinds = [k for k in _SITE if k in graph.LEVEL_KINDS[level]]
  corrupt, activations = corrupted(config, params, batch)
  activations = {_SITE[kind]: activations[_SITE[kind]] for kind in kinds}

  def metrics(circuit: graph.Circuit) -> np.ndarray:
    keep = {_SITE[kind]: jnp.asarray(circuit[kind] | outside, jnp.float32)
            for kind in kinds}
    return np.float64(sharding.to_host(patched_metric(
        config, params, batch, activations, keep)))

  total = lambda metrics: float(metrics @ np.asarray(batch.weight))
  full = graph.Circuit(**{
      kind: np.ones(s, bool) for kind, s in graph.shapes(config).items()})
  return Faithfulness(
      metrics=metrics, total=total, clean=total(metrics(full)),
      corrupt=float(corrupt), pairs=int(np.sum(batch.weight)))
