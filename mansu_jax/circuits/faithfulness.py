"""Does the circuit carry the behaviour? Patching, against random circuits.

Candidate nodes outside the circuit get their activations from the corrupted
prompt; a neuron circuit leaves attention alone, and a range of layers leaves
the layers outside it alone.
faithfulness = (m_circuit - m_corrupt) / (m_clean - m_corrupt), means over
pairs. 1 is the whole behaviour, 0 none of it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.circuits import curve
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import sites as sites_lib
from mansu_jax.runtime import sharding

_NOISE = 1e-3  # Of the metrics: a spread below this is none.
_SITE = {'neurons': sites_lib.Site.MLP_HIDDEN,
         'heads': sites_lib.Site.HEAD_OUT}


@functools.partial(jax.jit, static_argnames='config')
def patched_metric(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch, corrupt: types.Params, keep: types.Params
) -> types.Array:
  """The metric of each pair with all but `keep` corrupted, [B]."""
  patches = {site: {'keep': keep[site], 'value': corrupt[site]}
             for site in keep}
  with jax.default_matmul_precision('float32'):  # As the scores.
    hidden = decoder.forward_patched(
        config, params, batch.clean, patches=patches,
        positions=batch.positions, segments=batch.segments)
    return eap_ig.metric(params, hidden, batch)


@functools.partial(jax.jit, static_argnames='config')
def corrupted(config, params, batch):
  """Summed metric and activations of the corrupted prompts."""
  with jax.default_matmul_precision('float32'):
    hidden, taps = decoder.forward_with_taps(
        config, params, batch.corrupt, sites=eap_ig.SITES,
        positions=batch.positions, segments=batch.segments)
    scores = eap_ig.metric(params, hidden, batch)
  return jnp.sum(scores * batch.weight), taps


def spread(clean: float, corrupt: float, pairs: int) -> float:
  """What faithfulness is a share of: the clean metric less the corrupted.

  Args:
    clean: the metric summed over pairs, on their clean prompts.
    corrupt: on their corrupted ones.
    pairs: how many they are.

  Raises:
    ValueError: it is not positive, or float noise.
  """
  if clean - corrupt > _NOISE * (abs(clean) + abs(corrupt)):
    return clean - corrupt
  raise ValueError(
      f'Faithfulness cannot be measured on the first {pairs} pairs that the'
      ' model answers (--circuit_pairs): their metric, logit(answer) -'
      f' logit(corrupted answer), is {clean / pairs:.4g} on the clean and'
      f' {corrupt / pairs:.4g} on the corrupted prompts, on average; wanted it'
      ' higher on the clean ones. Give pairs whose corrupted prompts ask for'
      ' the corrupted answer (--attribution_pairs_file), or raise --circuit_pairs.')


class Faithfulness:
  """Measures circuits on fixed pairs; corrupted activations are kept.

  Args:
    config: the model's.
    params: full params.
    batch: one batch of pairs that the model answers.
    level: a key of `graph.LEVEL_KINDS`; only its kinds are patched.
    layers: only these are patched.
  """

  def __init__(
      self, config: model_config.ModelConfig, params: types.Params,
      batch: eap_ig.PairBatch, level: str, layers: range):
    self.config, self._params, self._batch = config, params, batch
    self._outside = ~np.isin(np.arange(config.num_layers), layers)[:, None]
    self._kinds = [k for k in _SITE if k in graph.LEVEL_KINDS[level]]
    corrupt_metric, self._corrupt = corrupted(config, params, batch)
    self._corrupt_metric = float(corrupt_metric)
    full = graph.Circuit(**{
        kind: np.ones(s, bool) for kind, s in graph.shapes(config).items()})
    self._clean_metric = self._metric(full)

  def _metric(self, circuit: graph.Circuit) -> float:
    return float(self.metrics(circuit) @ np.asarray(self._batch.weight))

  def metrics(self, circuit: graph.Circuit) -> np.ndarray:
    """The metric of each pair with all outside the circuit corrupted, [B]."""
    keep = {
        _SITE[kind]: jnp.asarray(circuit[kind] | self._outside, jnp.float32)
        for kind in self._kinds}
    corrupt = {site: self._corrupt[site] for site in keep}
    return np.float64(sharding.to_host(patched_metric(
        self.config, self._params, self._batch, corrupt, keep)))

  def __call__(self, circuit: graph.Circuit) -> float:
    """The faithfulness of a circuit.

    Raises:
      ValueError: as `spread`, of the pairs.
    """
    whole = spread(self._clean_metric, self._corrupt_metric,
                   int(np.sum(self._batch.weight)))
    return (self._metric(circuit) - self._corrupt_metric) / whole

  def smallest_prefix(self, ranking: select.Ranking, target: float) -> int:
    """Nodes of the shortest prefix that `curve.smallest` finds to reach it.

    Faithfulness need not grow with every node, so a shorter prefix that
    happens to reach the target may exist. -1 where none is found.
    """
    value_at = lambda size: self(select.prefix(ranking, size, self.config))
    return curve.smallest(value_at, target, ranking.node.size)
