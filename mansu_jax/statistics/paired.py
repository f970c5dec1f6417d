"""Tests of paired differences by fact, and Holm's correction for several.

References:
  Holm, 1979. A simple sequentially rejective multiple test procedure.
  Scandinavian Journal of Statistics 6(2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

DRAWS = 10_000


def sign_flip_p(
    values: Sequence[float] | np.ndarray, facts: Sequence[str], *,
    draws: int = DRAWS, seed: int = 0) -> float:
  """Two-sided p-value of a mean difference that is 0 on average.

  If two models do not differ, the difference of each fact, summed over its
  questions, is as likely with the other sign. So signs are drawn anew, fact by
  fact. The smallest possible value is 1 / (draws + 1).

  Args:
    values: [n] differences.
    facts: n fact ids.
    draws: number of random signs of each fact.
    seed: of the signs.

  Raises:
    ValueError: there are no values, or lengths differ.

  Example:
    >>> facts = list(map(str, range(20)))
    >>> sign_flip_p([0.1] * 20, facts) < 0.001, sign_flip_p([0.0] * 20, facts)
    (True, 1.0)
  """
  values = np.asarray(values, np.float64)
  if values.shape != (len(facts),) or not values.size:
    raise ValueError(
        f'There are differences of shape {values.shape} and {len(facts)} facts;'
        ' wanted one fact for each difference.')
  _, index = np.unique(facts, return_inverse=True)
  sums = np.bincount(index, values)
  signs = np.random.default_rng(seed).integers(
      0, 2, (draws, sums.size), dtype=np.int8) * 2 - 1
  # Sums of the same terms in other orders may differ by rounding.
  least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
  return float((1 + np.sum(np.abs(signs @ sums) >= least)) / (1 + draws))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
  """P-values adjusted so that all tests together err as often as one.

  Example:
    >>> holm({'a': 0.01, 'b': 0.04, 'c': 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
  """
  ordered, largest, out = sorted(p_values, key=p_values.get), 0.0, {}
  for rank, name in enumerate(ordered):
    largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[name]))
    out[name] = largest
  return {name: out[name] for name in p_values}
