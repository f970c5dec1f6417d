"""Random draws of groups of items: bootstrap samples and halves."""

from __future__ import annotations

import numpy as np


def weights(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Weights [n] (sum 1) of items in one bootstrap sample of their groups.

  Args:
    groups: group of each item, [n].
    rng: generator of the draw.
  """
  unique, inverse = np.unique(groups, return_inverse=True)
  counts = np.bincount(
      rng.integers(unique.size, size=unique.size), minlength=unique.size)
  drawn = counts[inverse].astype(np.float64)
  return drawn / drawn.sum()


def halves(
    groups: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Weights [n] (sum 1) of items in two disjoint halves of their groups.

  Args:
    groups: group of each item, [n]; at least two groups.
    rng: generator of the draw.
  """
  unique, inverse = np.unique(groups, return_inverse=True)
  first = rng.permutation(unique.size) < unique.size // 2
  sides = [first[inverse], ~first[inverse]]
  return tuple(side / side.sum() for side in sides)
