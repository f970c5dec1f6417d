"""Faithfulness by the size of the circuit, and the areas of this curve."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg
from mansu_jax.report.sections import circuit

Record = dict[str, Any]

_TOP = 'Circuits of the highest scores'
_SELECTIONS = {
    'top': _TOP,
    'greedy': 'Circuits that grow from the logits by the highest score',
}


class _Point(NamedTuple):
  """Faithfulness at one size, with that of random circuits if measured."""

  share: float
  faithfulness: float
  mean: float | None
  low: float | None
  high: float | None


def section(record: Record) -> document.Section:
  """Faithfulness by size beside random circuits, with CPR and CMD."""
  found = record['circuit']
  points = _points(found['curve'])
  area = lambda key: words.number(found.get(key)) + _random_area(found, key)
  return document.Section('Faithfulness by circuit size', (
      document.Text(
          f'CPR is {area("cpr")}: the area under the curve of faithfulness over'
          f' the share of candidates; larger is better. CMD is {area("cmd")}:'
          ' the area between this curve and 1; 0 is best. Shares below a tenth'
          f' contribute little to either.{_identical(found["curve"])}'),
      document.Plots((document.Plot(
          'circuit_curve', _chart(points),
          f'{_SELECTIONS.get(found["selection"], _TOP)} at each size, and the'
          ' mean and range of random circuits of the same size'
          f'{" before pruning" * circuit.has_edges_only(found)}.'),)),
      document.Table(
          ('share', 'faithfulness', 'random, mean', 'random, minimum',
           'random, maximum'),
          tuple((words.significant(p.share), *map(words.number, p[1:]))
                for p in points), labels=0,
          caption='Faithfulness by share of all candidates in the circuit: of'
          ' this ranking and of random circuits.')))


def _points(curve: Any) -> list[_Point]:
  """The curve's points; older records have lists by name."""
  if isinstance(curve, dict):
    return [_Point(*values) for values in zip(*(curve[key] for key in (
        'share', 'faithfulness', 'random_mean', 'random_low', 'random_high')))]
  return [_Point(p['share'], p['faithfulness'], *(
      (p.get('random') or {}).get(key) for key in ('mean', 'min', 'max')))
          for p in curve]


def _random_area(found: Record, key: str) -> str:
  """Mean area of the random curves, in brackets; '' where not measured."""
  values = found.get('random_curves', {}).get(key)
  if not values:
    return ''
  return f' (random circuits {words.number(sum(values) / len(values))})'


def _identical(curve: Any) -> str:
  """The sizes at which random circuits equal the ranking's, in a sentence."""
  if isinstance(curve, dict):  # Older records do not count them.
    return ''
  sizes = [f'{p["size"]:,} ({p["random"]["same"]})' for p in curve[:-1]
           if p.get('size') and (p.get('random') or {}).get('same')]
  if not sizes:
    return ''
  return (' For lack of other candidates, some random circuits are identical to'
          ' the ranking\'s, at the sizes (number of circuits)'
          f' {words.listing(sizes)}.')


def _chart(points: list[_Point]) -> str:
  drawn = [(math.log10(p.share), p) for p in points if p.share > 0]
  random = [(x, p) for x, p in drawn if p.mean is not None]
  series = [svg.Series('this ranking', 'unlearned', [
      (x, p.faithfulness) for x, p in drawn])]
  bands = []
  if random:
    series.append(svg.Series(
        'random, mean and range', 'null', [(x, p.mean) for x, p in random]))
    bands.append(svg.Band('', 'null', [(x, p.low, p.high) for x, p in random]))
  return svg.line_chart(
      'Faithfulness by circuit size', series, bands=bands,
      x_label='log10(share of all candidates)',
      y_label='faithfulness (share of the behaviour)', width=svg.WIDE)
