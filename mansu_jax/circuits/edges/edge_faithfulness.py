"""How faithful a circuit of edges is.

Edges outside the circuit carry what the corrupted prompts gave.
faithfulness = (m_circuit - m_corrupt) / (m_clean - m_corrupt), means over
pairs, where the corrupted end has all edges patched and the clean one none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits.edges import edge_patching
from mansu_jax.models import config as model_config
from mansu_jax.runtime import sharding


class EdgeFaithfulness:
  """Measures circuits on fixed pairs, a batch at a time.

  What the sources give under the corrupted prompts [S, R, T, D] is kept, on the
  host where there are several batches; a run holds two and a half times that of
  one batch.

  Args:
    config: the model's.
    params: full params.
    batches: of pairs that the model answers.
    never_patched: bool [S, G], edges that are never patched.
  """

  def __init__(
      self, config: model_config.ModelConfig, params: types.Params,
      batches: Sequence[eap_ig.PairBatch], never_patched: np.ndarray):
    self._config, self._params, self._batches = config, params, batches
    self._never_patched = never_patched
    keep = sharding.to_host if len(batches) > 1 else lambda reference: reference
    self._references = [
        keep(edge_patching.corrupted(config, params, b)) for b in batches]
    whole = np.ones_like(never_patched)
    clean, corrupt = self._each(whole), self._each(~whole)
    self._pairs, self._clean = clean.size, clean.sum()
    self._corrupt = corrupt.sum()

  def metrics(self, chosen: np.ndarray) -> np.ndarray:
    """The metric of each pair [P] where the circuit's edges carry theirs."""
    return self._each(chosen | self._never_patched)

  def _each(self, carried: np.ndarray) -> np.ndarray:
    """The metric of each pair [P] with all but some edges patched.

    Those that fill up a batch, of weight 0, are left out.
    """
    found = []
    for batch, reference in zip(self._batches, self._references):
      metrics = edge_patching.metric(
          self._config, self._params, batch, reference, ~carried)
      found.append(np.float64(sharding.to_host(metrics))[
          np.asarray(batch.weight) > 0])
    return np.concatenate(found)

  def __call__(self, chosen: np.ndarray) -> float:
    """The faithfulness of the circuit of some edges, bool [S, G].

    Raises:
      ValueError: as `faithfulness.spread`, of the pairs.
    """
    whole = faithfulness.spread(self._clean, self._corrupt, self._pairs)
    return float((self.metrics(chosen).sum() - self._corrupt) / whole)
