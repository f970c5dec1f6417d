"""SVG charts: dots with intervals, bars, lines and heat maps.

Callers pass text plain; the charts escape it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import html
from typing import NamedTuple

from mansu_jax.report.charts import drawing

Key = drawing.Key
Rule = drawing.Rule
STYLES = ('unlearned', 'null', 'base')  # Colours of marks.
WIDE, NARROW = 640, 310  # Pixels.

_element, _text, _dot = drawing.element, drawing.text, drawing.dot


class Dot(NamedTuple):
  """A value with its interval; a value of None is not drawn."""

  value: float | None
  interval: Sequence[float | None] | None = None
  style: str = 'unlearned'
  hollow: bool = False


class Row(NamedTuple):
  """A row of a dot chart."""

  label: str
  dots: Sequence[Dot]


class Bar(NamedTuple):
  """A bar between the x values `left` and `right`."""

  left: float
  right: float
  height: float
  style: str = 'unlearned'


class Series(NamedTuple):
  """A line through (x, y) points."""

  label: str  # Legend entry; empty for none.
  style: str
  points: Sequence[tuple[float, float]]


class Band(NamedTuple):
  """An area between two lines through (x, low, high) points."""

  label: str  # Legend entry; empty for none.
  style: str
  points: Sequence[tuple[float, float, float]]


class Strip(NamedTuple):
  """A row of a heat map: one value per column, each at least 0."""

  label: str
  values: Sequence[float]


def _limits(rows: Sequence[Row], rules: Sequence[Rule]) -> tuple[float, float]:
  """The range of all values, with a margin of 4 % on each side."""
  values = [rule.value for rule in rules]
  for row in rows:
    for dot in row.dots:
      values += [v for v in (dot.value, *(dot.interval or ()))
                 if v is not None]
  low, high = drawing.widen(min(values, default=0.0), max(values, default=1.0))
  margin = 0.04 * (high - low)
  return low - margin, high + margin


def dot_chart(
    title: str, rows: Sequence[Row], *, label: str,
    legend: Sequence[Key] = (), rules: Sequence[Rule] = (),
    limits: tuple[float, float] | None = None, joined: bool = False,
    width: int = WIDE) -> str:
  """Values with intervals, in labelled rows.

  Args:
    title: Title of the chart.
    rows: Rows from the top; one without any value reads `not measured`.
    label: Label of the horizontal axis, with the unit.
    legend: Meaning of the marks.
    rules: Reference values.
    limits: Range of the horizontal axis; None for the range of the values.
    joined: Whether to draw a row's dots on one line, joined and without
      intervals.
    width: Width in pixels.
  """
  characters = 34 if width == WIDE else 18
  heights = [
      12.0 + 11 * (1 if joined else max(1, len(row.dots)) + 0.4)
      for row in rows]
  names = [drawing.shorten(row.label, characters) for row in rows]
  frame = drawing.Frame(
      title, x=limits or _limits(rows, rules), y=(0, 1), width=width,
      height=sum(heights), left=12 + drawing.label_width(names),
      legend=legend, rules=rules)
  frame.x_axis(label, 6 if width == WIDE else 4)
  top = float(frame.top)
  for row, height, name in zip(rows, heights, names):
    middle = top + height / 2
    frame.add(_element(
        'text', f'<title>{html.escape(row.label)}</title>{html.escape(name)}',
        x=float(frame.left - 8), y=middle + 4, text_anchor='end'))
    if top > frame.top and not joined:
      frame.add(_horizontal(frame.left, frame.right, top, 'grid'))
    _draw_row(frame, row.dots, middle, joined)
    top += height
  return frame.render()


def _horizontal(start: float, end: float, y: float, style: str) -> str:
  """A horizontal line, in pixels."""
  return _element(
      'line', x1=float(start), x2=float(end), y1=y, y2=y, class_=style)


def _draw_row(
    frame: drawing.Frame, dots: Sequence[Dot], middle: float, joined: bool
) -> None:
  """Draws a row's dots around its middle, in pixels."""
  xs = [frame.x(dot.value) for dot in dots if dot.value is not None]
  if not xs:
    frame.add(_text(
        frame.left + 8, middle + 4, 'not measured', class_='missing'))
  if joined and len(xs) > 1:
    frame.add(_horizontal(min(xs), max(xs), middle, 'span axis'))
  for i, dot in enumerate(dots):
    if dot.value is not None:
      offset = 0 if joined else 11 * (i - (len(dots) - 1) / 2)
      _draw_dot(frame, dot, middle + offset)


def _draw_dot(frame: drawing.Frame, dot: Dot, y: float) -> None:
  """Draws a value, and its interval where both bounds are known."""
  low, high = dot.interval or (None, None)
  if low is not None and high is not None:
    frame.add(_horizontal(
        frame.x(low), frame.x(high), y, f'span {dot.style}'))
  frame.add(_dot(frame.x(dot.value), y, dot.style, dot.hollow))


def bar_chart(
    title: str, bars: Sequence[Bar], *, x_label: str, y_label: str,
    legend: Sequence[Key] = (), rules: Sequence[Rule] = (),
    integers: bool = False) -> str:
  """Bars on linear axes, for histograms and counts.

  Args:
    title: Title of the chart.
    bars: Bars that do not overlap.
    x_label: Label of the horizontal axis, with the unit.
    y_label: Label of the vertical axis, with the unit.
    legend: Meaning of the colours.
    rules: Reference values.
    integers: Whether to label integers only on the horizontal axis.
  """
  lefts = [bar.left for bar in bars] + [r.value for r in rules]
  rights = [bar.right for bar in bars] + [r.value for r in rules]
  highest = max((bar.height for bar in bars), default=0) or 1
  frame = drawing.Frame(
      title, x=(min(lefts, default=0), max(rights, default=1)),
      y=(0, highest * 1.05), width=WIDE, height=170,
      left=14 + drawing.label_width(
          [drawing.number(drawing.ticks(0, highest, 4)[-1])]),
      legend=legend, rules=rules, y_label=y_label)
  frame.x_axis(x_label, 8, integers)
  for bar in bars:
    if bar.height > 0:
      left, right = frame.x(bar.left), frame.x(bar.right)
      top = frame.y(bar.height)
      gap = min(1.0, 0.1 * (right - left))
      frame.add(_element(
          'rect', x=left + gap, width=right - left - 2 * gap, y=top,
          height=frame.bottom - top, class_=f'bar {bar.style}'))
  return frame.render()


def heat_map(
    title: str, rows: Sequence[Strip], *, x_label: str,
    name: Callable[[float], str]) -> str:
  """Values as shades, from 0 (clear) to the largest (full colour).

  Args:
    title: Title of the chart.
    rows: Rows from the top; columns are numbered from 0.
    x_label: Label of the columns.
    name: Formats a value for the legend and the tooltips.
  """
  largest = max((v for row in rows for v in row.values), default=0) or 1
  frame = drawing.Frame(
      title, x=(-0.5, max(len(row.values) for row in rows) - 0.5), y=(0, 1),
      width=WIDE, height=18 * len(rows),
      left=12 + drawing.label_width([row.label for row in rows]),
      legend=[Key(f'largest: {name(largest)}', 'unlearned')])
  frame.x_axis(x_label, 8, integers=True)
  for i, row in enumerate(rows):
    top = float(frame.top + 18 * i)
    frame.add(_text(frame.left - 8, top + 13, row.label, text_anchor='end'))
    for x, value in enumerate(row.values):
      tooltip = html.escape(f'{row.label}, {x_label} {x}: {name(value)}')
      frame.add(_element(
          'rect', f'<title>{tooltip}</title>', x=frame.x(x - 0.5), y=top + 1,
          width=frame.x(x + 0.5) - frame.x(x - 0.5), height=16.0,
          class_='bar unlearned', fill_opacity=value / largest))
  return frame.render()


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_label: str,
    width: int = NARROW, bands: Sequence[Band] = (), colours: bool = False
) -> str:
  """Lines on linear axes; the vertical axis includes zero.

  Args:
    title: Title of the chart.
    series: Lines.
    x_label: Label of the horizontal axis, with the unit.
    y_label: Label of the vertical axis, with the unit.
    width: Width in pixels.
    bands: Areas behind the lines.
    colours: Whether styles are of `drawing.colour`.
  """
  points = [p for line in series for p in line.points]
  for band in bands:
    points += [(x, y) for x, *ends in band.points for y in ends]
  xs, ys = zip(*points)
  low, high = drawing.widen(min(0.0, *ys), max(ys))
  high += 0.05 * (high - low)
  marks = drawing.ticks(low, high, 4)
  frame = drawing.Frame(
      title, x=(min(xs), max(xs)), y=(low, high), width=width, height=140,
      left=14 + drawing.label_width([drawing.number(v) for v in marks]),
      legend=[Key(line.label, line.style) for line in (*series, *bands)
              if line.label],
      y_label=y_label, colours=colours)
  frame.x_axis(x_label, 4)
  for band in bands:
    _draw_band(frame, band)
  for line in series:
    _draw_line(frame, line)
  return frame.render()


def _polyline(
    frame: drawing.Frame, points: Sequence[tuple[float, float]]) -> str:
  """Pixels of points, as the `points` attribute."""
  return ' '.join(f'{frame.x(x):.1f},{frame.y(y):.1f}' for x, y in points)


def _draw_band(frame: drawing.Frame, band: Band) -> None:
  outline = [(x, high) for x, _, high in band.points] + [
      (x, low) for x, low, _ in reversed(band.points)]
  frame.add(_element(
      'polygon', points=_polyline(frame, outline),
      class_=f'band {band.style}'))


def _draw_line(frame: drawing.Frame, line: Series) -> None:
  """Draws a line, or a dot where there is one point only."""
  frame.add(_element('polyline', points=_polyline(frame, line.points),
                     class_=f'line {line.style}'))
  if len(line.points) == 1:
    (x, y), = line.points
    frame.add(_dot(frame.x(x), frame.y(y), line.style, False))
