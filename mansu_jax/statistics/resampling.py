"""Random draws of groups of items: bootstrap samples and halves."""

from __future__ import annotations

import numpy as np


def counts(size: int, draws: int, rng: np.random.Generator) -> np.ndarray:
  """Count of each of `size` groups in bootstrap samples, int [draws, size].

  One call draws the same samples as several calls with fewer draws.

  Args:
    size: number of groups, and of groups in each sample.
    draws: number of samples.
    rng: generator of the draws.
  """
  drawn = rng.integers(size, size=(draws, size))
  drawn += size * np.arange(draws)[:, None]
  return np.bincount(
      drawn.ravel(), minlength=draws * size).reshape(draws, size)


def first_half(size: int, rng: np.random.Generator) -> np.ndarray:
  """The groups of one half in a random halving, bool [size]; rounded down."""
  return rng.permutation(size) < size // 2


def weights(
    groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
  """Weights of items in bootstrap samples of their groups, [draws, n].

  Args:
    groups: group of each item, [n].
    draws: number of samples.
    rng: generator of the draws.

  Returns:
    Weights whose sum is 1 in each sample.
  """
  unique, inverse = np.unique(groups, return_inverse=True)
  drawn = np.take(counts(unique.size, draws, rng), inverse, axis=1)
  drawn = drawn.astype(np.float64)
  return drawn / drawn.sum(1, keepdims=True)


def halves(
    groups: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Weights [n] (sum 1) of items in two disjoint halves of their groups.

  Args:
    groups: group of each item, [n]; at least two groups.
    rng: generator of the draw.
  """
  unique, inverse = np.unique(groups, return_inverse=True)
  first = first_half(unique.size, rng)
  sides = [first[inverse], ~first[inverse]]
  return tuple(side / side.sum() for side in sides)
