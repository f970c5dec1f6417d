"""A scatter of methods, each in full precision and quantized."""

from __future__ import annotations

from collections.abc import Sequence
import html
from typing import NamedTuple

from mansu_jax.report.charts import drawing
from mansu_jax.report.charts import svg

_HEIGHT, _LINE = 300, 14.0  # Pixels: of the plotting area, of a name.


class Point(NamedTuple):
  """A method at a precision."""

  precision: str  # Its tooltip.
  x: float
  y: float


class Method(NamedTuple):
  """A method's points: in full precision, then under each quantizer."""

  name: str
  style: str  # From `drawing.colour`.
  points: Sequence[Point]


def frontier(
    title: str, methods: Sequence[Method], *, x_label: str, y_label: str
) -> str:
  """Points of methods: full, and hollow where quantized, joined by lines.

  Args:
    title: Title of the chart.
    methods: At least one, each with at least one point.
    x_label: Label of the horizontal axis, with the unit.
    y_label: Label of the vertical axis, with the unit.
  """
  points = [point for method in methods for point in method.points]
  frame = drawing.Frame(
      title, x=_range([p.x for p in points]), y=_range([p.y for p in points]),
      width=svg.WIDE, height=_HEIGHT,
      left=14 + drawing.label_width(['-0.25']), y_label=y_label, colours=True,
      legend=[drawing.Key('full precision', 'base'),
              drawing.Key('quantized', 'base', hollow=True)])
  frame.x_axis(x_label, 8)
  names, taken = [], []
  for method in methods:
    style, (first, *quantized) = method.style, method.points
    x, y = frame.x(first.x), frame.y(first.y)
    for point in quantized:
      frame.add(drawing.element(
          'line', x1=x, y1=y, x2=frame.x(point.x), y2=frame.y(point.y),
          class_=f'line {style}'))
    for point in (*quantized, first):
      tooltip = html.escape(f'{method.name}, {point.precision}')
      frame.add(drawing.element('g', f'<title>{tooltip}</title>' + drawing.dot(
          frame.x(point.x), frame.y(point.y), style, point is not first)))
    names.append(_name(method.name, x, y, frame.right, taken))
  for name in names:
    frame.add(name)
  return frame.render()


def _range(values: Sequence[float]) -> tuple[float, float]:
  """With zero and a margin."""
  low, high = drawing.widen(min(0.0, *values), max(0.0, *values))
  margin = 0.05 * (high - low)
  return low - margin, high + margin


def _name(
    name: str, x: float, y: float, right: float,
    taken: list[tuple[float, float, float]]) -> str:
  """A name beside its point, below the names that are in its way."""
  width = drawing.CHARACTER * len(name)
  left = x + 8 if x + 8 + width <= right else x - 8 - width
  y += 4
  in_the_way = lambda: [
      other for start, end, other in taken
      if start < left + width and left < end and abs(other - y) < _LINE]
  while found := in_the_way():
    y = max(found) + _LINE
  taken.append((left, left + width, y))
  return drawing.text(
      left, y, name, class_='halo', aria_hidden='true') + drawing.text(
          left, y, name)
