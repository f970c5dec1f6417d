"""Bootstrap intervals of few facts."""

from __future__ import annotations

import math

from scipy import stats


def expanded(tail: float, count: int) -> float:
  """The tail probability at which to read a percentile interval.

  Percentiles of resampled means are too narrow for few facts, by what separates
  the normal distribution from Student's t and n from n - 1.

  Args:
    tail: wanted, on one side.
    count: of facts, which are what is resampled; of one nothing can be told,
      and the tail is left as it is.

  References:
    Hesterberg, 2015. What teachers should know about the bootstrap.
    https://arxiv.org/abs/1411.5279
  """
  if count < 2:
    return tail
  t = stats.t.ppf(tail, count - 1) * math.sqrt(count / (count - 1))
  return float(stats.norm.cdf(t))
