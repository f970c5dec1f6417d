"""Faithfulness of circuits of edges: all other edges are patched.

A patched edge carries the output of its source on the corrupted prompt. The
corrupted end of the scale has all edges patched, the clean end none.
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


def of_edges(
    config: model_config.ModelConfig, params: types.Params,
    batches: Sequence[eap_ig.PairBatch], never_patched: np.ndarray
) -> faithfulness.Faithfulness[np.ndarray]:
  """Faithfulness of circuits of edges, bool [S, G], a batch at a time.

  The sources' outputs on the corrupted prompts, [S, R, T, D] a batch, stay in
  device memory if there is one batch and in host memory otherwise. A run takes
  two and a half times the memory of one such array.

  Args:
    config: the model's config.
    params: full params.
    batches: pairs that the model answers; pairs of weight 0 are left out.
    never_patched: bool [S, G], edges that are never patched.
  """
  store = sharding.to_host if len(batches) > 1 else lambda reference: reference
  references = [
      store(edge_patching.corrupted(config, params, b)) for b in batches]

  def run(batch, reference, patched):
    metrics = edge_patching.metric(config, params, batch, reference, patched)
    return np.float64(sharding.to_host(metrics))[np.asarray(batch.weight) > 0]

  def metrics(chosen: np.ndarray) -> np.ndarray:
    patched = ~(chosen | never_patched)
    return np.concatenate([
        run(batch, reference, patched)
        for batch, reference in zip(batches, references)])

  every = np.ones_like(never_patched)
  clean = metrics(every)
  corrupt = np.concatenate([
      run(batch, reference, every)
      for batch, reference in zip(batches, references)])
  return faithfulness.Faithfulness(
      metrics=metrics, total=np.sum, clean=clean.sum(), corrupt=corrupt.sum(),
      pairs=clean.size)
