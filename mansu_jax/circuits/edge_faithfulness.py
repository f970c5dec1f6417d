"""How faithful a circuit of edges is.

Edges outside the circuit carry what the corrupted prompts gave.
faithfulness = (m_circuit - m_corrupt) / (m_clean - m_corrupt), means over
pairs, where the corrupted end has all edges patched and the clean one none.
"""

from __future__ import annotations

import numpy as np

from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import edge_patching
from mansu_jax.circuits import faithfulness
from mansu_jax.models import config as model_config


class EdgeFaithfulness:
  """Measures circuits on fixed pairs; corrupted outputs are kept.

  Args:
    config: the model's.
    params: full params.
    batch: one batch of pairs that the model answers.
    alone: bool [S, G], edges that are never patched.
  """

  def __init__(
      self, config: model_config.ModelConfig, params: types.Params,
      batch: eap_ig.PairBatch, alone: np.ndarray):
    self._config, self._params, self._batch = config, params, batch
    self._alone = alone
    self._reference = edge_patching.corrupted(config, params, batch)
    whole = np.ones_like(alone)
    self._clean, self._corrupt = self._metric(whole), self._metric(~whole)

  def metrics(self, chosen: np.ndarray) -> np.ndarray:
    """The metric of each pair [P] where the circuit's edges carry theirs."""
    return self._each(chosen | self._alone)

  def _each(self, carried: np.ndarray) -> np.ndarray:
    """The metric of each pair with all but some edges patched."""
    return np.asarray(edge_patching.metric(
        self._config, self._params, self._batch, self._reference, ~carried),
                      np.float64)

  def _metric(self, carried: np.ndarray) -> float:
    """Its sum over pairs."""
    return float((self._each(carried) * np.asarray(self._batch.weight)).sum())

  def __call__(self, chosen: np.ndarray) -> float:
    """The faithfulness of the circuit of some edges, bool [S, G].

    Raises:
      ValueError: as `faithfulness.spread`, of the pairs.
    """
    whole = faithfulness.spread(
        self._clean, self._corrupt, int(np.sum(self._batch.weight)))
    return (self._metric(chosen | self._alone) - self._corrupt) / whole
