"""Process of `attribution_against` that scores all edges by this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.bench import attribution_process
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edges
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models.io import loading


def _prepare(job: dict[str, Any]) -> Callable[[], np.ndarray]:
  model = loading.load(job['model'])
  jax.block_until_ready(model.params)
  job['loaded']()
  pairs = [
      pairs_lib.AttributionPair(tuple(clean), tuple(corrupt), *ids, fact='')
      for clean, corrupt, *ids in job['pairs']]
  (batch,) = pair_batches.pack(pairs, len(pairs), one_per_row=True)
  batch, points = jax.device_put(batch), edges.eap_ig_points(job['steps'])
  return lambda: np.asarray(edges.pair_scores(
      model.config, model.params, batch, points=points).edges).mean(0)


if __name__ == '__main__':
  attribution_process.serve(_prepare)
