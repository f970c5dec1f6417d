"""Verdicts of three states: passed (True), failed (False), inconclusive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

INCONCLUSIVE = 'inconclusive'
Verdict = bool | str  # True, False or INCONCLUSIVE


def above(bounds: Iterable[float], level: float = 0.0) -> Verdict:
  """Whether an interval lies above a level; inconclusive if it contains it.

  Example:
    >>> above((1, 2), 0.5), above((1, 2), 3), above((1, 2), 1.5)
    (True, False, 'inconclusive')
  """
  low, high = bounds
  if low > level:
    return True
  return False if high < level else INCONCLUSIVE


def below(bounds: Iterable[float], level: float = 0.0) -> Verdict:
  """Whether an interval lies below a level; inconclusive if it contains it."""
  low, high = bounds
  return above((-high, -low), -level)


def at_least(
    bounds: Iterable[float | None], level: float) -> Verdict:
  """Whether a quantity is at least a level, given its lower and upper bound.

  Args:
    bounds: lower and upper bound; None: unbounded.
    level: the level.

  Example:
    >>> at_least((1, 2), 1), at_least((1, 2), 3), at_least((None, 2), 1.5)
    (True, False, 'inconclusive')
  """
  low, high = bounds
  if low is not None and low >= level:
    return True
  return False if high is not None and high < level else INCONCLUSIVE


def at_most(bounds: Iterable[float | None], level: float) -> Verdict:
  """Whether a quantity is at most a level; arguments as for `at_least`."""
  low, high = (None if bound is None else -bound for bound in bounds)
  return at_least((high, low), -level)


def within(found: Mapping[str, Any], level: float) -> Verdict:
  """Whether a value is below the level of its null.

  A value at or above the level fails only if its whole interval is above;
  otherwise the verdict is inconclusive.

  Args:
    found: `value` and `interval`.
    level: the level of the null.
  """
  if found['value'] < level:
    return True
  return INCONCLUSIVE if below(
      found['interval'], level) == INCONCLUSIVE else False


def beyond(found: Mapping[str, Any], level: float) -> Verdict:
  """Whether a value is above the level of its null, judged like `within`."""
  low, high = found['interval']
  return within({'value': -found['value'], 'interval': (-high, -low)}, -level)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
  """False if any verdict is False, True if all are True, else inconclusive.

  Example:
    >>> all_of([True, 'inconclusive']), all_of([False, 'inconclusive'])
    ('inconclusive', False)
  """
  verdicts = list(verdicts)
  if any(v is False for v in verdicts):
    return False
  return True if all(v is True for v in verdicts) else INCONCLUSIVE


def missing(why: str, threshold: float | None = None) -> dict[str, Any]:
  """The record's entry of a property that was not measured.

  Args:
    why: the reason, a clause.
    threshold: threshold of the property.
  """
  return {'value': None, 'interval': [None, None], 'threshold': threshold,
          'passed': INCONCLUSIVE, 'reason': why}
