"""Elements of SVG charts: shapes, a frame with axes, and one style.

Each drawing is a complete SVG document with its own style and background. It
is readable on light and dark screens and in print, as a file and inline in an
HTML page. This module escapes text; callers pass it plain.
"""

from __future__ import annotations

from collections.abc import Sequence
import html
import math
from typing import NamedTuple

CHARACTER = 6.5  # Mean width of a label's character, in pixels.
MARGIN = 16  # Around the drawing, in pixels.
# Of things that are compared, on light and on dark ground.
_COLOURS = (
    ('#1f5fd0', '#7fabff'), ('#b86a00', '#e8a54b'), ('#14713f', '#5fd08f'),
    ('#a3307a', '#f08cc4'), ('#0d7f8c', '#5cc8d6'), ('#b3261e', '#ff8a80'),
    ('#6b4fc4', '#b39dff'), ('#66758a', '#93a1b5'))
_STYLE = '''
.mj{font-size:11.5px;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.mj text{fill:#4a5565}.mj .title{font-weight:600;font-size:13px;fill:#1b2430}
.mj .bg{fill:#fff}.mj .grid{stroke:#e6e9ee}.mj .axis{stroke:#9aa5b4}
.mj .rule{stroke:#1b2430;stroke-dasharray:4 3}
.mj .base{stroke:#66758a;fill:#66758a}
.mj .unlearned{stroke:#1f5fd0;fill:#1f5fd0}
.mj .null{stroke:#b86a00;fill:#b86a00}
.mj .hollow{fill:#fff}.mj .line{fill:none;stroke-width:1.6}
.mj .span{stroke-width:1.8;stroke-linecap:round}.mj .bar{stroke:none}
.mj .dot{stroke-width:1.8}.mj .missing{font-style:italic}
.mj .band{stroke:none;fill-opacity:.2}.mj .mark{stroke:none}
.mj .edge{fill:none;stroke-linecap:round}.mj .ring{fill:none}
@media screen and (prefers-color-scheme:dark){
.mj text{fill:#aeb8c6}.mj .title{fill:#e8edf4}.mj .bg{fill:#171c24}
.mj .grid{stroke:#2a323e}.mj .axis{stroke:#5f6c7d}.mj .rule{stroke:#e8edf4}
.mj .base{stroke:#93a1b5;fill:#93a1b5}
.mj .unlearned{stroke:#7fabff;fill:#7fabff}
.mj .null{stroke:#e8a54b;fill:#e8a54b}
.mj .hollow{fill:#171c24}.mj .line{fill:none}
.mj .edge,.mj .ring{fill:none}.mj .mark,.mj .band,.mj .bar{stroke:none}}
'''


class Key(NamedTuple):
  """A legend entry."""

  label: str
  style: str
  hollow: bool = False


class Rule(NamedTuple):
  """A vertical reference line."""

  value: float
  label: str


def colour(i: int) -> str:
  """The style of the i-th thing of a chart with `colours`; they repeat."""
  return f'c{i % len(_COLOURS)}'


def _colour_style() -> str:
  """Also that of a `halo`, which parts a text from lines behind it."""
  rules = lambda ground: ''.join(
      f'.mj .{colour(i)}{{stroke:{pair[ground]}}}'
      f'.mj .{colour(i)}:not(.hollow):not(.line){{fill:{pair[ground]}}}'
      for i, pair in enumerate(_COLOURS)) + (
          '.mj .halo{stroke-width:3px;'
          f'stroke:{("#fff", "#171c24")[ground]}}}')
  return (f'{rules(0)}\n@media screen and (prefers-color-scheme:dark){{'
          f'{rules(1)}}}\n')


def number(value: float) -> str:
  """A tick label: short, without a sign on zero."""
  return f'{value + 0.0:.6g}'


def ticks(low: float, high: float, count: int = 6) -> list[float]:
  """Round values within [low, high], about `count` of them."""
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def element(name: str, content: str | None = None, **attributes) -> str:
  """An SVG element.

  Args:
    name: Element name.
    content: Escaped content; None for an empty element.
    **attributes: Plain values. In names `_` becomes `-`; a trailing `_` is
      dropped.
  """
  written = []
  for key, value in attributes.items():
    key = key.rstrip('_').replace('_', '-')
    if isinstance(value, float):
      value = f'{value:.2f}'.rstrip('0').rstrip('.')
    written.append(f' {key}="{html.escape(str(value))}"')
  joined = ''.join(written)
  return (f'<{name}{joined}/>' if content is None
          else f'<{name}{joined}>{content}</{name}>')


def text(x: float, y: float, text: str, **attributes) -> str:
  """A text element at a position in pixels; `text_anchor` aligns it."""
  return element('text', html.escape(text), x=float(x), y=float(y),
                 **attributes)


def shorten(text: str, characters: int) -> str:
  """One line of at most `characters` characters."""
  text = ' '.join(text.split())
  return text if len(text) <= characters else text[:characters - 1] + '…'


class Frame:
  """Title, legend and linear axes.

  `x` and `y` convert data to pixels; `add` takes elements in pixels.

  Attributes:
    title: Title of the chart.
    width: Width in pixels.
    left: Left edge of the plotting area, in pixels.
    right: Right edge.
    top: Top edge.
    bottom: Bottom edge.
  """

  def __init__(
      self, title: str, *, x: tuple[float, float], y: tuple[float, float],
      width: int, height: float, left: float, legend: Sequence[Key] = (),
      rules: Sequence[Rule] = (), y_label: str = '', colours: bool = False):
    self.title, self.width, self._marks = title, width, []
    self._style = _STYLE + (_colour_style() if colours else '')
    self.left, self.right = left, width - MARGIN - 4
    legend_rows = self._lay_out(legend)
    self.top = 38 + 18 * legend_rows + (14 if rules or y_label else 0)
    self.bottom = self.top + height
    self._x, self._y = widen(*x), widen(*y)
    self._rules = rules
    if y_label:
      self._y_axis(y_label)
    self._draw_rules()

  def _lay_out(self, legend: Sequence[Key]) -> int:
    """Draws the legend under the title; returns its number of rows."""
    x, row = MARGIN + 6.0, 0
    for key in legend:
      wide = 26 + CHARACTER * len(key.label)
      if x + wide > self.width and x > MARGIN + 6:
        x, row = MARGIN + 6.0, row + 1
      y = 40.0 + 18 * row
      self._marks.append(dot(x, y - 4, key.style, key.hollow))
      self._marks.append(text(x + 9, y, key.label))
      x += wide
    return row + 1 if legend else 0

  def x(self, value: float) -> float:
    """Horizontal position of a value, in pixels."""
    low, high = self._x
    return self.left + (value - low) / (high - low) * (self.right - self.left)

  def y(self, value: float) -> float:
    """Vertical position of a value, in pixels."""
    low, high = self._y
    return self.bottom - (value - low) / (high - low) * (
        self.bottom - self.top)

  def add(self, mark: str) -> None:
    """Adds an element."""
    self._marks.append(mark)

  def x_axis(self, label: str, count: int, integers: bool = False) -> None:
    """Draws vertical grid lines, their values, and the axis label."""
    for value in ticks(*self._x, count):
      if integers and value != round(value):
        continue
      x = self.x(value)
      self._marks.insert(0, element(
          'line', x1=x, x2=x, y1=float(self.top), y2=float(self.bottom),
          class_='grid'))
      self.add(text(x, self.bottom + 16, number(value),
                     text_anchor='middle'))
    self.add(text((self.left + self.right) / 2, self.bottom + 34, label,
                   text_anchor='middle'))

  def _y_axis(self, label: str) -> None:
    """Draws horizontal grid lines, their values, and the label above."""
    for value in ticks(*self._y, 4):
      y = self.y(value)
      self._marks.insert(0, element(
          'line', x1=float(self.left), x2=float(self.right), y1=y, y2=y,
          class_='grid'))
      self.add(text(self.left - 7, y + 4, number(value), text_anchor='end'))
    self.add(text(MARGIN, self.top - 7, label))

  def _draw_rules(self) -> None:
    edge = -math.inf
    for rule in sorted(self._rules, key=lambda r: r.value):
      x = self.x(rule.value)
      self.add(element('line', x1=x, x2=x, y1=float(self.top - 3),
                        y2=float(self.bottom), class_='rule'))
      half = CHARACTER * len(rule.label) / 2
      middle = min(max(x, self.left + half, edge + half + 8),
                   self.width - half - 4)
      self.add(text(middle, self.top - 7, rule.label, text_anchor='middle'))
      edge = middle + half

  def render(self) -> str:
    """The complete SVG document."""
    height = math.ceil(self.bottom + 44)
    self.add(element(
        'line', x1=float(self.left), x2=float(self.right),
        y1=float(self.bottom), y2=float(self.bottom), class_='axis'))
    title = html.escape(self.title)
    body = [
        f'<title>{title}</title>', f'<style>{self._style}</style>',
        element('rect', width=self.width, height=height, rx=6, class_='bg'),
        text(MARGIN, 22, self.title, class_='title'), *self._marks]
    return element(
        'svg', '\n'.join(body), xmlns='http://www.w3.org/2000/svg',
        viewBox=f'0 0 {self.width} {height}', width=self.width, height=height,
        class_='mj', role='img', aria_label=self.title) + '\n'


def mark(x: float, y: float, radius: float, style: str, tooltip: str,
         **attributes) -> str:
  """A disc with a tooltip; position and radius in pixels."""
  return element(
      'circle', f'<title>{html.escape(tooltip)}</title>', cx=float(x),
      cy=float(y), r=float(radius), class_=f'mark {style}', **attributes)


def label_width(labels: Sequence[str]) -> float:
  """Width of the longest label with the outer margin, in pixels."""
  return MARGIN + CHARACTER * max(map(len, labels), default=0)


def widen(low: float, high: float) -> tuple[float, float]:
  """The range, or one of width 1 where it is empty."""
  return (low, high) if high > low else (low - 0.5, low + 0.5)


def dot(x: float, y: float, style: str, hollow: bool) -> str:
  """A data point; position in pixels."""
  return element('circle', cx=float(x), cy=float(y), r=4,
                 class_=f'dot {style}' + ' hollow' * hollow)
