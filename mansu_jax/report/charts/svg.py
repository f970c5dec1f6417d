"""Small clean SVG charts, written by hand: dots with intervals, bars, lines.

They are drawn with `drawing`. Text is escaped here; callers pass it plain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import html
from typing import NamedTuple

from mansu_jax.report.charts import drawing

Key, Rule = drawing.Key, drawing.Rule
STYLES = ('unlearned', 'null', 'base')  # What a mark's colour tells.
WIDE, NARROW = 640, 310  # Pixels.

_element, _text, _dot = drawing.element, drawing.text, drawing.dot


class Dot(NamedTuple):
  """A value with its interval; None is not drawn."""

  value: float | None
  interval: Sequence[float | None] | None = None
  style: str = 'unlearned'
  hollow: bool = False


class Row(NamedTuple):
  """A line of a dot chart."""

  label: str
  dots: Sequence[Dot]


class Bar(NamedTuple):
  """A bar from x `left` to `right`."""

  left: float
  right: float
  height: float
  style: str = 'unlearned'


class Series(NamedTuple):
  """A line through (x, y) points."""

  label: str  # In the legend; empty: not named there.
  style: str
  points: Sequence[tuple[float, float]]


class Band(NamedTuple):
  """An area between two lines, through (x, low, high)."""

  label: str  # In the legend.
  style: str
  points: Sequence[tuple[float, float, float]]


class Strip(NamedTuple):
  """A row of a heat map: a value a column, none below 0."""

  label: str
  values: Sequence[float]


def _span(rows: Sequence[Row], rules: Sequence[Rule]) -> tuple[float, float]:
  """The range of all that is drawn, with some room."""
  values = [rule.value for rule in rules]
  for row in rows:
    for dot in row.dots:
      values += [v for v in (dot.value, *(dot.interval or ()))
                 if v is not None]
  low, high = drawing.widen(min(values, default=0.0), max(values, default=1.0))
  room = 0.04 * (high - low)
  return low - room, high + room


def dot_chart(
    title: str, rows: Sequence[Row], *, label: str,
    legend: Sequence[Key] = (), rules: Sequence[Rule] = (),
    span: tuple[float, float] | None = None, joined: bool = False,
    width: int = WIDE) -> str:
  """Values with intervals, a label a row.

  Args:
    title: of the chart.
    rows: from above; a row whose values are all None says so.
    label: of the horizontal axis.
    legend: what the marks stand for.
    rules: reference values.
    span: range of the axis; None: of what is drawn.
    joined: put a row's dots on one line and join them (no intervals).
    width: pixels.
  """
  characters = 34 if width == WIDE else 18
  heights = [
      12.0 + 11 * (1 if joined else max(1, len(row.dots)) + 0.4)
      for row in rows]
  shown = [drawing.shorten(row.label, characters) for row in rows]
  frame = drawing.Frame(
      title, x=span or _span(rows, rules), y=(0, 1), width=width,
      height=sum(heights), left=12 + drawing.room_for(shown),
      legend=legend, rules=rules)
  frame.x_axis(label, 6 if width == WIDE else 4)
  y = float(frame.top)
  for row, height, name in zip(rows, heights, shown):
    told = f'<title>{html.escape(row.label)}</title>{html.escape(name)}'
    frame.add(_element(
        'text', told,
        x=float(frame.left - 8), y=y + height / 2 + 4, text_anchor='end'))
    if y > frame.top and not joined:
      frame.add(_element('line', x1=float(frame.left), x2=float(frame.right),
                         y1=y, y2=y, class_='grid'))
    _draw_dots(frame, row.dots, y, height, joined)
    y += height
  return frame.render()


def _draw_dots(frame, dots, top, height, joined):
  drawn = [dot for dot in dots if dot.value is not None]
  if not drawn:
    frame.add(_text(frame.left + 8, top + height / 2 + 4, 'not measured',
                    class_='missing'))
  if joined and len(drawn) > 1:
    ends = [frame.x(dot.value) for dot in drawn]
    frame.add(_element('line', x1=min(ends), x2=max(ends), y1=top + height / 2,
                       y2=top + height / 2, class_='span axis'))
  for i, dot in enumerate(dots):
    if dot.value is None:
      continue
    y = top + height / 2 + (0 if joined else 11 * (i - (len(dots) - 1) / 2))
    low, high = dot.interval or (None, None)
    if low is not None and high is not None:
      frame.add(_element('line', x1=frame.x(low), x2=frame.x(high), y1=y, y2=y,
                         class_=f'span {dot.style}'))
    frame.add(_dot(frame.x(dot.value), y, dot.style, dot.hollow))


def bar_chart(
    title: str, bars: Sequence[Bar], *, x_label: str, y_label: str,
    legend: Sequence[Key] = (), rules: Sequence[Rule] = (),
    whole: bool = False) -> str:
  """Bars on linear axes, for histograms and counts.

  Args:
    title: of the chart.
    bars: none may overlap.
    x_label: of the horizontal axis.
    y_label: of the vertical axis.
    legend: what the colours stand for.
    rules: reference values.
    whole: name whole numbers only on the horizontal axis.
  """
  lefts = [bar.left for bar in bars] + [r.value for r in rules]
  rights = [bar.right for bar in bars] + [r.value for r in rules]
  highest = max((bar.height for bar in bars), default=0) or 1
  frame = drawing.Frame(
      title, x=(min(lefts, default=0), max(rights, default=1)),
      y=(0, highest * 1.05), width=WIDE, height=170,
      left=14 + drawing.room_for(
          [drawing.number(drawing.ticks(0, highest, 4)[-1])]),
      legend=legend, rules=rules, y_label=y_label)
  frame.x_axis(x_label, 8, whole)
  for bar in bars:
    if bar.height > 0:
      left, right, top = frame.x(bar.left), frame.x(bar.right), frame.y(
          bar.height)
      gap = min(1.0, 0.1 * (right - left))
      frame.add(_element(
          'rect', x=left + gap, width=right - left - 2 * gap, y=top,
          height=frame.bottom - top, class_=f'bar {bar.style}'))
  return frame.render()


def heat_map(
    title: str, rows: Sequence[Strip], *, x_label: str,
    name: Callable[[float], str]) -> str:
  """Values from 0, clear, to the largest, in full colour; columns from 0."""
  most = max((v for row in rows for v in row.values), default=0) or 1
  frame = drawing.Frame(
      title, x=(-0.5, max(len(row.values) for row in rows) - 0.5), y=(0, 1),
      width=WIDE, height=18 * len(rows),
      left=12 + drawing.room_for([row.label for row in rows]),
      legend=[Key(f'largest: {name(most)}', 'unlearned')])
  frame.x_axis(x_label, 8, whole=True)
  for i, row in enumerate(rows):
    top = float(frame.top + 18 * i)
    frame.add(_text(frame.left - 8, top + 13, row.label, text_anchor='end'))
    for x, value in enumerate(row.values):
      told = html.escape(f'{row.label}, {x_label} {x}: {name(value)}')
      frame.add(_element(
          'rect', f'<title>{told}</title>', x=frame.x(x - 0.5), y=top + 1,
          width=frame.x(x + 0.5) - frame.x(x - 0.5), height=16.0,
          class_='bar unlearned', fill_opacity=value / most))
  return frame.render()


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_label: str,
    width: int = NARROW, bands: Sequence[Band] = ()) -> str:
  """Lines on linear axes, from zero or from their lowest value if lower."""
  points = [p for line in series for p in line.points]
  for band in bands:
    points += [(x, y) for x, *ends in band.points for y in ends]
  xs, ys = zip(*points)
  low, high = drawing.widen(min(0.0, *ys), max(ys))
  high += 0.05 * (high - low)
  marks = drawing.ticks(low, high, 4)
  frame = drawing.Frame(
      title, x=(min(xs), max(xs)), y=(low, high), width=width, height=140,
      left=14 + drawing.room_for([drawing.number(v) for v in marks]),
      legend=[Key(line.label, line.style) for line in (*series, *bands)
              if line.label],
      y_label=y_label)
  frame.x_axis(x_label, 4)
  joined = lambda ends: ' '.join(
      f'{frame.x(x):.1f},{frame.y(y):.1f}' for x, y in ends)
  for band in bands:
    around = [(x, top) for x, _, top in band.points] + [
        (x, bottom) for x, bottom, _ in reversed(band.points)]
    frame.add(_element(
        'polygon', points=joined(around), class_=f'band {band.style}'))
  for line in series:
    frame.add(_element('polyline', points=joined(line.points),
                       class_=f'line {line.style}'))
    if len(line.points) == 1:
      (x, y), = line.points
      frame.add(_dot(frame.x(x), frame.y(y), line.style, False))
  return frame.render()
