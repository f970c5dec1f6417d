"""Weights and calibration inputs for tests of the calibrated quantizers."""

import numpy as np


def weights(shape, seed=0):
  """Weights [out, in] with heavy tails, float32."""
  rng = np.random.default_rng(seed)
  return (rng.standard_t(4, shape) * 0.02).astype(np.float32)


def correlated(size, seed=1, count=300):
  """Low-rank inputs [count, size] with different scales, float32."""
  rng = np.random.default_rng(seed)
  few = rng.normal(size=(count, max(2, size // 4)))
  mixed = few @ rng.normal(size=(few.shape[1], size))
  x = mixed + 0.3 * rng.normal(size=(count, size))
  return (x * np.exp(rng.normal(size=size))).astype(np.float32)


def second_moment(x):
  """Mean of x x^T, float32 [in, in]."""
  return (x.T.astype(np.float64) @ x / len(x)).astype(np.float32)
