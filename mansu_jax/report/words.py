"""Formats figures as text: one format for each kind of figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

MISSING = 'not measured'

SPLITS = {
    'forget': 'forget (trained phrasings)',
    'forget_paraphrase': 'forget_paraphrase (near phrasings, not trained)',
    'forget_far': 'forget_far (far phrasings, not trained)',
    'forget_unseen': 'forget_unseen (wrong choices never trained on)',
    'forget_same_subject': 'forget_same_subject (choices of the same subject)',
    'forget_reverse': 'forget_reverse (asks for the subject)',
    'retain': 'retain (trained facts, new phrasings)',
    'retain_heldout': 'retain_heldout (facts never trained)',
}
# Splits that every run should have.
REQUIRED_SPLITS = ('forget', 'forget_paraphrase', 'forget_far', 'retain',
                   'retain_heldout')
# The `use` field of evaluation questions on forget facts -> a label.
PHRASINGS = {
    'near': 'near phrasings (forget_paraphrase)',
    'far': 'far phrasings (forget_far)',
}
VERDICTS = {True: 'passed', False: 'failed', 'inconclusive': 'inconclusive'}


def verdict(state: Any) -> str:
  """`passed`, `failed`, `inconclusive` or `not measured`."""
  return VERDICTS.get(state, MISSING)


def number(value: float | None, digits: int = 3) -> str:
  """A figure rounded to `digits` decimals."""
  if value is None:
    return MISSING
  return f'{round(value, digits) + 0.0:.{digits}f}'  # No sign on zero.


def signed(value: float | None, digits: int = 3) -> str:
  """A difference with its sign."""
  return MISSING if value is None else f'{value + 0.0:+.{digits}f}'


def significant(value: float | None, digits: int = 3) -> str:
  """A figure rounded to `digits` significant digits."""
  return MISSING if value is None else f'{value:.{digits}g}'


def percent(share: float | None) -> str:
  """A share in percent with three significant digits."""
  if share is None:
    return MISSING
  return f'{100 * share:.3g} %'


def interval(
    bounds: Sequence[float | None] | None, digits: int = 3,
    sign: bool = False) -> str:
  """`[low, high]`, or `no interval`."""
  if not bounds or all(x is None for x in bounds):
    return 'no interval'
  form = signed if sign else number
  low, high = (form(x, digits) if x is not None else 'unbounded'
               for x in bounds)
  return f'[{low}, {high}]'


def estimate(
    entry: dict[str, Any] | None, digits: int = 3, sign: bool = False) -> str:
  """A value with its interval."""
  if not entry or entry.get('value') is None:
    return MISSING
  form = signed if sign else number
  return (f'{form(entry["value"], digits)}'
          f' {interval(entry.get("interval"), digits, sign)}')


def ratio(above: float | None, below: float | None) -> float | None:
  """above / below; None where one is unknown or below is 0."""
  return None if above is None or not below else above / below


def duration(seconds: float | None) -> str:
  """`4.2 s`, or `3 min 07 s` from two minutes on."""
  if seconds is None:
    return MISSING
  if seconds < 120:
    return f'{seconds:.1f} s'
  return f'{int(seconds // 60)} min {int(seconds % 60):02d} s'


def size(count: float | None) -> str:
  """A number of bytes in binary units."""
  if count is None:
    return MISSING
  power = min(3, int(math.log2(max(count, 1)) // 10))
  return f'{count / 1024**power:.{1 if power else 0}f}' + (
      ' B', ' KiB', ' MiB', ' GiB')[power]


def listing(items: Sequence[str]) -> str:
  """`a, b and c`."""
  items = list(items)
  return items[0] if len(items) == 1 else (
      f'{", ".join(items[:-1])} and {items[-1]}' if items else 'none')


def count(number_of: int, singular: str) -> str:
  """`1 question`, `2 questions`."""
  return f'{number_of:,} {singular}{"" if number_of == 1 else "s"}'


def model_name(source: Mapping[str, Any]) -> str:
  """Name of a model for others: a path is of this machine alone.

  Args:
    source: of the model, with `name` and perhaps `kind`.
  """
  name = source['name']
  if source.get('kind') in ('directory', 'gguf'):
    return pathlib.Path(name).resolve().name
  return name
