"""Small clean SVG charts, written by hand: dots with intervals, bars, lines.

Every chart is a whole SVG document with its own style, readable on light and
dark screens and in print, so that the same text serves as a file and inline
in a page. Text is escaped here; callers pass it plain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import html
import math
from typing import NamedTuple

STYLES = ('unlearned', 'null', 'base')  # What a mark's colour tells.
WIDE, NARROW = 640, 310  # Pixels.

_CHARACTER = 6.5  # Mean width of a character of the labels, in pixels.
_ROOM = 16  # Around everything.
_STYLE = '''
.mj{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.mj text{fill:#4a5565}.mj .title{font-weight:600;font-size:13px;fill:#1b2430}
.mj .bg{fill:#fff}.mj .grid{stroke:#e6e9ee}.mj .axis{stroke:#9aa5b4}
.mj .rule{stroke:#1b2430;stroke-dasharray:4 3}
.mj .base{stroke:#66758a;fill:#66758a}
.mj .unlearned{stroke:#1f5fd0;fill:#1f5fd0}
.mj .null{stroke:#b86a00;fill:#b86a00}
.mj .hollow{fill:#fff}.mj .line{fill:none;stroke-width:1.6}
.mj .span{stroke-width:1.8;stroke-linecap:round}.mj .bar{stroke:none}
.mj .dot{stroke-width:1.8}.mj .missing{font-style:italic}
@media screen and (prefers-color-scheme:dark){
.mj text{fill:#aeb8c6}.mj .title{fill:#e8edf4}.mj .bg{fill:#171c24}
.mj .grid{stroke:#2a323e}.mj .axis{stroke:#5f6c7d}.mj .rule{stroke:#e8edf4}
.mj .base{stroke:#93a1b5;fill:#93a1b5}
.mj .unlearned{stroke:#7fabff;fill:#7fabff}
.mj .null{stroke:#e8a54b;fill:#e8a54b}
.mj .hollow{fill:#171c24}.mj .line{fill:none}}
'''


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


class Strip(NamedTuple):
  """A row of a heat map: a value a column, none below 0."""

  label: str
  values: Sequence[float]


class Key(NamedTuple):
  """An entry of the legend."""

  label: str
  style: str
  hollow: bool = False


class Rule(NamedTuple):
  """A vertical reference line."""

  value: float
  label: str


def number(value: float) -> str:
  """A tick's label: short, without a sign on zero."""
  return f'{value + 0.0:.6g}'


def ticks(low: float, high: float, count: int = 6) -> list[float]:
  """Round values that cover [low, high] from inside."""
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _element(name: str, content: str | None = None, **attributes) -> str:
  """An element; names of attributes with _ for - and a trailing _ dropped."""
  written = []
  for key, value in attributes.items():
    key = key.rstrip('_').replace('_', '-')
    if isinstance(value, float):
      value = f'{value:.2f}'.rstrip('0').rstrip('.')
    written.append(f' {key}="{html.escape(str(value))}"')
  joined = ''.join(written)
  return (f'<{name}{joined}/>' if content is None
          else f'<{name}{joined}>{content}</{name}>')


def _text(x: float, y: float, text: str, **attributes) -> str:
  return _element('text', html.escape(text), x=float(x), y=float(y),
                  **attributes)


def _shorten(text: str, characters: int) -> str:
  text = ' '.join(text.split())
  return text if len(text) <= characters else text[:characters - 1] + '…'


class _Frame:
  """Title, legend and linear axes; marks are added in data coordinates."""

  def __init__(
      self, title: str, *, x: tuple[float, float], y: tuple[float, float],
      width: int, height: float, left: float, legend: Sequence[Key] = (),
      rules: Sequence[Rule] = (), y_label: str = ''):
    self.title, self.width, self._marks = title, width, []
    self.left, self.right = left, width - _ROOM - 4
    legend_rows = self._lay_out(legend)
    self.top = 38 + 18 * legend_rows + (14 if rules or y_label else 0)
    self.bottom = self.top + height
    self._x, self._y = _widen(*x), _widen(*y)
    self._rules = rules
    if y_label:
      self._y_axis(y_label)
    self._draw_rules()

  def _lay_out(self, legend: Sequence[Key]) -> int:
    """Draws the legend under the title; returns how many rows it takes."""
    x, row = _ROOM + 6.0, 0
    for key in legend:
      wide = 26 + _CHARACTER * len(key.label)
      if x + wide > self.width and x > _ROOM + 6:
        x, row = _ROOM + 6.0, row + 1
      y = 40.0 + 18 * row
      self._marks.append(_dot(x, y - 4, key.style, key.hollow))
      self._marks.append(_text(x + 9, y, key.label))
      x += wide
    return row + 1 if legend else 0

  def x(self, value: float) -> float:
    """Pixels of a value."""
    low, high = self._x
    return self.left + (value - low) / (high - low) * (self.right - self.left)

  def y(self, value: float) -> float:
    """Pixels of a value."""
    low, high = self._y
    return self.bottom - (value - low) / (high - low) * (
        self.bottom - self.top)

  def add(self, mark: str) -> None:
    """Adds an element."""
    self._marks.append(mark)

  def x_axis(self, label: str, count: int, whole: bool = False) -> None:
    """Vertical grid lines with their values, and the label below."""
    for value in ticks(*self._x, count):
      if whole and value != round(value):
        continue
      x = self.x(value)
      self._marks.insert(0, _element(
          'line', x1=x, x2=x, y1=float(self.top), y2=float(self.bottom),
          class_='grid'))
      self.add(_text(x, self.bottom + 16, number(value),
                     text_anchor='middle'))
    self.add(_text((self.left + self.right) / 2, self.bottom + 34, label,
                   text_anchor='middle'))

  def _y_axis(self, label: str) -> None:
    """Horizontal grid lines with their values; the label is above."""
    for value in ticks(*self._y, 4):
      y = self.y(value)
      self._marks.insert(0, _element(
          'line', x1=float(self.left), x2=float(self.right), y1=y, y2=y,
          class_='grid'))
      self.add(_text(self.left - 7, y + 4, number(value), text_anchor='end'))
    self.add(_text(_ROOM, self.top - 7, label))

  def _draw_rules(self) -> None:
    edge = -math.inf
    for rule in sorted(self._rules, key=lambda r: r.value):
      x = self.x(rule.value)
      self.add(_element('line', x1=x, x2=x, y1=float(self.top - 3),
                        y2=float(self.bottom), class_='rule'))
      half = _CHARACTER * len(rule.label) / 2
      middle = min(max(x, self.left + half, edge + half + 8),
                   self.width - half - 4)
      self.add(_text(middle, self.top - 7, rule.label, text_anchor='middle'))
      edge = middle + half

  def render(self) -> str:
    """The whole document."""
    height = math.ceil(self.bottom + 44)
    self.add(_element(
        'line', x1=float(self.left), x2=float(self.right),
        y1=float(self.bottom), y2=float(self.bottom), class_='axis'))
    title = html.escape(self.title)
    body = [
        f'<title>{title}</title>', f'<style>{_STYLE}</style>',
        _element('rect', width=self.width, height=height, rx=6, class_='bg'),
        _text(_ROOM, 22, self.title, class_='title'), *self._marks]
    return _element(
        'svg', '\n'.join(body), xmlns='http://www.w3.org/2000/svg',
        viewBox=f'0 0 {self.width} {height}', width=self.width, height=height,
        class_='mj', role='img', aria_label=self.title) + '\n'


def _widen(low: float, high: float) -> tuple[float, float]:
  """A range of more than no width."""
  return (low, high) if high > low else (low - 0.5, low + 0.5)


def _dot(x: float, y: float, style: str, hollow: bool) -> str:
  return _element('circle', cx=float(x), cy=float(y), r=4,
                  class_=f'dot {style}' + ' hollow' * hollow)


def _span(rows: Sequence[Row], rules: Sequence[Rule]) -> tuple[float, float]:
  """The range of all that is drawn, with some room."""
  values = [rule.value for rule in rules]
  for row in rows:
    for dot in row.dots:
      values += [v for v in (dot.value, *(dot.interval or ()))
                 if v is not None]
  low, high = _widen(min(values, default=0.0), max(values, default=1.0))
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
  longest = max((len(_shorten(r.label, characters)) for r in rows), default=0)
  frame = _Frame(
      title, x=span or _span(rows, rules), y=(0, 1), width=width,
      height=sum(heights), left=_ROOM + 12 + _CHARACTER * longest,
      legend=legend, rules=rules)
  frame.x_axis(label, 6 if width == WIDE else 4)
  y = float(frame.top)
  for row, height in zip(rows, heights):
    shown = html.escape(_shorten(row.label, characters))
    frame.add(_element(
        'text', f'<title>{html.escape(row.label)}</title>{shown}',
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
  frame = _Frame(
      title, x=(min(lefts, default=0), max(rights, default=1)),
      y=(0, highest * 1.05), width=WIDE, height=170,
      left=_ROOM + 14 + _CHARACTER * len(number(ticks(0, highest, 4)[-1])),
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
  frame = _Frame(
      title, x=(-0.5, max(len(row.values) for row in rows) - 0.5), y=(0, 1),
      width=WIDE, height=18 * len(rows),
      left=_ROOM + 12 + _CHARACTER * max(len(row.label) for row in rows),
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
    width: int = NARROW) -> str:
  """Lines on linear axes, from zero or from their lowest value if lower."""
  xs = [x for line in series for x, _ in line.points]
  ys = [y for line in series for _, y in line.points]
  low, high = _widen(min(0.0, *ys), max(ys))
  high += 0.05 * (high - low)
  marks = ticks(low, high, 4)
  frame = _Frame(
      title, x=(min(xs), max(xs)), y=(low, high), width=width, height=140,
      left=_ROOM + 14 + _CHARACTER * max(len(number(v)) for v in marks),
      legend=[Key(line.label, line.style) for line in series if line.label],
      y_label=y_label)
  frame.x_axis(x_label, 4)
  for line in series:
    ends = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in ends)
    frame.add(_element('polyline', points=path, class_=f'line {line.style}'))
    if len(ends) == 1:
      frame.add(_dot(*ends[0], line.style, False))
  return frame.render()
