"""Draws a circuit: layers from left to right, one mark per node.

Heads are rows, with a layer's MLP below them. The area of a mark is its
|score|, on one scale for heads and another for MLPs. Nodes outside the circuit
are faint. In a circuit of neurons, an MLP's ring is the summed |score| of all
its neurons, its disc that of the neurons in the circuit, and bars count these
neurons. Edges run through the heads, or below the MLPs where neither end is a
head.

Models with more heads than rows fit have several heads per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import html
import math
import re
from typing import Any, NamedTuple

from mansu_jax.report.charts import drawing

Record = dict[str, Any]

_WIDTH = 960
_MAX_ROWS = 32
# Heights in pixels.
_HEADS = 300.0  # All rows of heads together.
_ROW = (8.0, 18.0)  # Smallest and largest row of heads.
_GAP = 34.0  # Around the row of MLPs.
_ARCS, _BARS = 96.0, 42.0  # Below the row of MLPs.
_MIN_RADIUS = 0.35  # Smallest mark outside the circuit.
_FAINT, _FULL = 0.28, 0.9
_NODE = re.compile(r'a(\d+)\.h(\d+)(?:<[qkv]>)?|m(\d+)')
_SUPPORTS, _OPPOSES = 'unlearned', 'null'


class _Row(NamedTuple):
  """A row of the heads `first` to `last`."""

  kind: str
  first: int
  last: int
  y: float  # Pixels below the top.

  def label(self) -> str:
    kind = 'kv head' if self.kind == 'kv_heads' else 'head'
    if self.first == self.last:
      return f'{kind} {self.first}'
    return f'{kind}s {self.first}-{self.last}'


class _Layout:
  """Heights of the rows, in pixels below the top."""

  def __init__(self, summary: Record):
    self.layers = len(summary['heads']['score'])
    kinds = [k for k in ('heads', 'kv_heads') if k in summary]
    widths = {kind: len(summary[kind]['score'][0]) for kind in kinds}
    per_row = math.ceil(max(widths.values()) / _MAX_ROWS)
    count = sum(math.ceil(n / per_row) for n in widths.values())
    self.pitch = min(max(_HEADS / count, _ROW[0]), _ROW[1])
    self.rows, y = [], self.pitch / 2
    for kind in kinds:
      for first in range(0, widths[kind], per_row):
        last = min(first + per_row, widths[kind]) - 1
        self.rows.append(_Row(kind, first, last, y))
        y += self.pitch
      y += 7 + self.pitch / 2
    self.mlp = y + _GAP - 10
    self.has_edges = 'edges' in summary
    self.has_neurons = any(summary['mlp'].get('neurons', []))
    self.height = self.mlp + (
        _ARCS if self.has_edges else _BARS + 30 if self.has_neurons else _GAP)

  def row_of(self, head: int) -> _Row:
    return next(row for row in self.rows
                if row.kind == 'heads' and row.first <= head <= row.last)


def draw(title: str, summary: Record) -> str:
  """The chart as a complete SVG document.

  Args:
    title: Title of the chart.
    summary: `summary` of a record's circuit: `heads`, `mlp`, and optionally
      `kv_heads` and `edges`; see `stages.circuit.circuit_summary`.
  """
  layout = _Layout(summary)
  extra = 1.0 if layout.has_edges else 0.0  # Columns of input and logits.
  labels = [row.label() for row in layout.rows] + ['neurons']
  frame = drawing.Frame(
      title, x=(-0.5 - extra, layout.layers - 0.5 + extra), y=(0, 1),
      width=_WIDTH, height=layout.height, left=12 + drawing.label_width(labels),
      legend=(drawing.Key('in the circuit, supports the right answer',
                          _SUPPORTS),
              drawing.Key('in the circuit, opposes it', _OPPOSES),
              drawing.Key('faint: outside the circuit', 'base', True)))
  _axis(frame, layout)
  if layout.has_edges:
    _edges(frame, layout, summary['edges'])
  for row in layout.rows:
    _heads(frame, layout, row, summary)
  if 'held' in summary['mlp']:
    _mlp_nodes(frame, layout, summary['mlp'])
  else:
    _mlp_layers(frame, layout, summary['mlp'])
  return frame.render()


def _axis(frame: drawing.Frame, layout: _Layout) -> None:
  """Layer numbers below, row labels on the left."""
  for value in drawing.ticks(0, max(layout.layers - 1, 1), 8):
    if value == round(value):
      frame.add(drawing.text(frame.x(value), frame.bottom + 16,
                             drawing.number(value), text_anchor='middle'))
  frame.add(drawing.text((frame.left + frame.right) / 2, frame.bottom + 34,
                         'layer', text_anchor='middle'))
  labels = []
  for kind in ('heads', 'kv_heads'):
    rows = [row for row in layout.rows if row.kind == kind]
    labels += [(row.label(), row.y) for row in rows[:1] + rows[1:][-1:]]
  labels.append(('MLP', layout.mlp))
  apart = [labels[0]] + [
      b for a, b in zip(labels, labels[1:]) if b[1] - a[1] >= 12]
  for label, y in apart:
    frame.add(drawing.text(
        frame.left - 10, frame.top + y + 4, label, text_anchor='end'))


def _mark(
    frame: drawing.Frame, layer: float, y: float, radius: float, score: float,
    member: bool, tooltip: str) -> None:
  frame.add(drawing.mark(
      frame.x(layer), frame.top + y, max(radius, _MIN_RADIUS),
      _SUPPORTS if score >= 0 else _OPPOSES, tooltip,
      fill_opacity=_FULL if member else _FAINT))


def _column_width(frame: drawing.Frame) -> float:
  return frame.x(1) - frame.x(0)


def _radius(value: float, largest: float, max_radius: float) -> float:
  """Radius of a mark whose area is proportional to |value|."""
  return max_radius * math.sqrt(min(abs(value) / (largest or 1), 1))


def _heads(
    frame: drawing.Frame, layout: _Layout, row: _Row, summary: Record) -> None:
  """Draws a row of heads; a mark sums the scores of the row's heads."""
  total = lambda values, row=row: sum(values[row.first:row.last + 1])
  found = summary[row.kind]
  largest = max((abs(total(values, r)) for r in layout.rows
                 if r.kind == row.kind for values in found['score']), default=0)
  max_radius = min(0.65 * layout.pitch, _column_width(frame) / 2 - 0.3)
  for layer, values in enumerate(found['score']):
    score, member = total(values), total(found['held'][layer]) > 0
    radius = _radius(score, largest, max_radius)
    if member or radius >= _MIN_RADIUS:
      _mark(frame, layer, row.y, radius, score, member,
            f'layer {layer}, {row.label()}: {score:.3g}'
            f'{", in the circuit" if member else ""}')


def _mlp_radius(frame: drawing.Frame) -> float:
  return min(_column_width(frame) / 2 - 0.5, 13.0)


def _mlp_nodes(frame: drawing.Frame, layout: _Layout, found: Record) -> None:
  """Draws MLPs as nodes, and the input and the logits beside them."""
  scores = [score for score, in found['score']]
  largest, max_radius = max(map(abs, scores), default=0), _mlp_radius(frame)
  for layer, score in enumerate(scores):
    member = bool(found['held'][layer][0])
    _mark(frame, layer, layout.mlp, _radius(score, largest, max_radius),
          score, member, f'layer {layer}, MLP: {score:.3g}'
          f'{", in the circuit" if member else ""}')
  for name, column in (('input', -1), ('logits', layout.layers)):
    x, y = frame.x(column), frame.top + layout.mlp
    frame.add(drawing.element('rect', x=x - 4, y=y - 4, width=8, height=8,
                              class_='mark base'))
    frame.add(drawing.text(x, y - 10, name, text_anchor='middle'))


def _mlp_layers(frame: drawing.Frame, layout: _Layout, found: Record) -> None:
  """Draws each MLP as a ring, its part in the circuit as a disc, and bars."""
  largest, max_radius = max(found['all'], default=0), _mlp_radius(frame)
  for layer, (score, inside, total, count) in enumerate(zip(*(
      found[k] for k in ('score', 'size', 'all', 'neurons')))):
    tooltip = (
        f'layer {layer}, MLP: {count:,} neurons in the circuit with |score|'
        f' {inside:.3g} of {total:.3g}')
    frame.add(drawing.element(
        'circle', f'<title>{tooltip}</title>', cx=frame.x(layer),
        cy=frame.top + layout.mlp, r=_radius(total, largest, max_radius),
        class_='ring base', stroke_opacity=0.6))
    if count:
      _mark(frame, layer, layout.mlp, _radius(inside, largest, max_radius),
            score, True, tooltip)
  if layout.has_neurons:
    _neuron_bars(frame, layout, found['neurons'])


def _neuron_bars(
    frame: drawing.Frame, layout: _Layout, counts: Sequence[int]) -> None:
  """Draws bars that count the circuit's neurons by layer."""
  floor, half = frame.top + layout.height, 0.36 * _column_width(frame)
  for layer, count in enumerate(counts):
    if count:
      height = _BARS * count / max(counts)
      frame.add(drawing.element(
          'rect', f'<title>layer {layer}: {count:,} neurons</title>',
          x=frame.x(layer) - half, width=2 * half, y=floor - height,
          height=height, class_='bar base'))
  for text, y in (('neurons', floor - _BARS / 2 - 3), (
      f'(max {max(counts):,})', floor - _BARS / 2 + 11)):
    frame.add(drawing.text(frame.left - 10, y, text, text_anchor='end'))


def _edges(
    frame: drawing.Frame, layout: _Layout, edges: Sequence[Sequence[Any]]
) -> None:
  """Draws edges, the largest scores last and on top."""
  largest = max((abs(score) for *_, score in edges), default=0) or 1
  for source, target, score in reversed(edges):
    share = math.sqrt(abs(score) / largest)
    style = _SUPPORTS if score >= 0 else _OPPOSES
    tooltip = html.escape(f'{source} -> {target}: {score:.3g}')
    path = ' '.join(_path(frame, layout, source, target))
    frame.add(drawing.element(
        'path', f'<title>{tooltip}</title>', d=path, class_=f'edge {style}',
        stroke_width=0.6 + 2.6 * share, stroke_opacity=0.16 + 0.6 * share))


def _path(
    frame: drawing.Frame, layout: _Layout, source: str, target: str
) -> Iterator[str]:
  """Path commands of the curve between two nodes."""
  (column, y), (end, y_end) = (_position(layout, n) for n in (source, target))
  x, x_end = frame.x(column), frame.x(end)
  at = lambda x, y: f'{x:.1f},{frame.top + y:.1f}'
  yield f'M{at(x, y)}'
  if y == y_end == layout.mlp:  # A Bezier arc reaches 3/4 of its control depth.
    share = math.sqrt((end - column) / (layout.layers + 1))
    depth = (_ARCS - 14) * share / 0.75
    yield f'C{at(x, y + depth)} {at(x_end, y + depth)} {at(x_end, y_end)}'
    return
  middle = (x + x_end) / 2 if end > column else x + 0.5 * _column_width(frame)
  yield f'C{at(middle, y)} {at(middle, y_end)} {at(x_end, y_end)}'


def _position(layout: _Layout, name: str) -> tuple[float, float]:
  """Column, and height in pixels below the top, of a node."""
  if name in ('input', 'logits'):
    return (-1 if name == 'input' else layout.layers), layout.mlp
  layer, head, mlp_layer = _NODE.fullmatch(name).groups()
  if mlp_layer is not None:
    return int(mlp_layer), layout.mlp
  return int(layer), layout.row_of(int(head)).y
