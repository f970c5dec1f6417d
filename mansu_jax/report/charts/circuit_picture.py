"""A circuit in one picture: layers from left to right, a mark a node.

Heads stand above each other, a layer's MLP below them. The area of a mark is
its |score|, with one scale for heads and one for MLPs; what is not in the
circuit is faint. Of a circuit of neurons an MLP's disc is what the circuit
holds of it and the ring the whole MLP, and bars count its neurons. Edges run
through the heads, or below where both ends are MLPs, the input or the logits.

Rows are bins of heads where a model has more heads than there is room for.
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
_MOST_ROWS = 32
_HEADS = 300.0  # Pixels of all rows of heads, at most
_ROW = (8.0, 18.0)  # and of one.
_GAP = 34.0  # Around the row of MLPs.
_ARCS, _BARS = 96.0, 42.0  # Below it.
_LEAST = 0.35  # Radius of what is drawn although it is not in the circuit.
_FAINT, _FULL = 0.28, 0.9
_NODE = re.compile(r'a(\d+)\.h(\d+)(?:<[qkv]>)?|m(\d+)')
_HELPS, _HURTS = 'unlearned', 'null'


class _Row(NamedTuple):
  """The heads from `first` on, up to `last`."""

  kind: str
  first: int
  last: int
  y: float  # Below the top.

  def label(self) -> str:
    what = 'kv head' if self.kind == 'kv_heads' else 'head'
    if self.first == self.last:
      return f'{what} {self.first}'
    return f'{what}s {self.first}-{self.last}'


class _Layout:
  """Where things stand, in pixels below the top."""

  def __init__(self, picture: Record):
    self.layers = len(picture['heads']['score'])
    kinds = [k for k in ('heads', 'kv_heads') if k in picture]
    widths = {kind: len(picture[kind]['score'][0]) for kind in kinds}
    per_row = math.ceil(max(widths.values()) / _MOST_ROWS)
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
    self.has_edges = 'edges' in picture
    self.has_neurons = any(picture['mlp'].get('neurons', []))
    self.height = self.mlp + (
        _ARCS if self.has_edges else _BARS + 30 if self.has_neurons else _GAP)

  def row_of(self, head: int) -> _Row:
    return next(row for row in self.rows
                if row.kind == 'heads' and row.first <= head <= row.last)


def draw(title: str, picture: Record) -> str:
  """The picture as a whole SVG document.

  Args:
    title: above it.
    picture: of a record's circuit: `heads`, `mlp`, and where there are any
      `kv_heads` and `edges`.
  """
  layout = _Layout(picture)
  beside = 1.0 if layout.has_edges else 0.0  # Columns of input and logits.
  labels = [row.label() for row in layout.rows] + ['neurons']
  frame = drawing.Frame(
      title, x=(-0.5 - beside, layout.layers - 0.5 + beside), y=(0, 1),
      width=_WIDTH, height=layout.height, left=12 + drawing.room_for(labels),
      legend=(drawing.Key('in the circuit, for the right answer', _HELPS),
              drawing.Key('in it, against the right answer', _HURTS),
              drawing.Key('not in it: faint, of either colour', 'base', True)))
  _axis(frame, layout)
  if layout.has_edges:
    _edges(frame, layout, picture['edges'])
  for row in layout.rows:
    _heads(frame, layout, row, picture)
  if 'held' in picture['mlp']:
    _mlp_nodes(frame, layout, picture['mlp'])
  else:
    _mlp_layers(frame, layout, picture['mlp'])
  return frame.render()


def _axis(frame: drawing.Frame, layout: _Layout) -> None:
  """Numbers of layers below, names of rows beside."""
  for value in drawing.ticks(0, max(layout.layers - 1, 1), 8):
    if value == round(value):
      frame.add(drawing.text(frame.x(value), frame.bottom + 16,
                             drawing.number(value), text_anchor='middle'))
  frame.add(drawing.text((frame.left + frame.right) / 2, frame.bottom + 34,
                         'layer', text_anchor='middle'))
  named = []
  for kind in ('heads', 'kv_heads'):
    rows = [row for row in layout.rows if row.kind == kind]
    named += [(row.label(), row.y) for row in rows[:1] + rows[1:][-1:]]
  named.append(('MLP', layout.mlp))
  kept = [named[0]] + [
      b for a, b in zip(named, named[1:]) if b[1] - a[1] >= 12]
  for label, y in kept:
    frame.add(drawing.text(
        frame.left - 10, frame.top + y + 4, label, text_anchor='end'))


def _mark(
    frame: drawing.Frame, layer: float, y: float, radius: float, score: float,
    held: bool, told: str) -> None:
  frame.add(drawing.mark(
      frame.x(layer), frame.top + y, max(radius, _LEAST),
      _HELPS if score >= 0 else _HURTS, told,
      fill_opacity=_FULL if held else _FAINT))


def _column(frame: drawing.Frame) -> float:
  return frame.x(1) - frame.x(0)


def _size(value: float, most: float, radius: float) -> float:
  """Radius of a mark whose area is its value."""
  return radius * math.sqrt(min(abs(value) / (most or 1), 1))


def _heads(
    frame: drawing.Frame, layout: _Layout, row: _Row, picture: Record) -> None:
  """A row of heads, or of bins of them."""
  binned = lambda values: sum(values[row.first:row.last + 1])
  found = picture[row.kind]
  most = max((abs(sum(values[r.first:r.last + 1])) for r in layout.rows
              if r.kind == row.kind for values in found['score']), default=0)
  radius = min(0.65 * layout.pitch, _column(frame) / 2 - 0.3)
  for layer, values in enumerate(found['score']):
    score, held = binned(values), binned(found['held'][layer]) > 0
    size = _size(score, most, radius)
    if held or size >= _LEAST:
      _mark(frame, layer, row.y, size, score, held,
            f'layer {layer}, {row.label()}: {score:.3g}'
            f'{", in the circuit" if held else ""}')


def _mlp_radius(frame: drawing.Frame) -> float:
  return min(_column(frame) / 2 - 0.5, 13.0)


def _mlp_nodes(frame: drawing.Frame, layout: _Layout, found: Record) -> None:
  """MLPs that are nodes as heads are; input and logits."""
  scores = [score for score, in found['score']]
  most = max(map(abs, scores), default=0)
  for layer, score in enumerate(scores):
    held = bool(found['held'][layer][0])
    _mark(frame, layer, layout.mlp, _size(score, most, _mlp_radius(frame)),
          score, held, f'layer {layer}, MLP: {score:.3g}'
          f'{", in the circuit" if held else ""}')
  for name, column in (('input', -1), ('logits', layout.layers)):
    x, y = frame.x(column), frame.top + layout.mlp
    frame.add(drawing.element('rect', x=x - 4, y=y - 4, width=8, height=8,
                              class_='mark base'))
    frame.add(drawing.text(x, y - 10, name, text_anchor='middle'))


def _mlp_layers(frame: drawing.Frame, layout: _Layout, found: Record) -> None:
  """A ring for each MLP, a disc for what the circuit holds of it, bars."""
  most, radius = max(found['all'], default=0), _mlp_radius(frame)
  for layer, (score, size, whole, count) in enumerate(zip(*(
      found[k] for k in ('score', 'size', 'all', 'neurons')))):
    told = (f'layer {layer}, MLP: {count:,} neurons in the circuit with |score|'
            f' {size:.3g} of {whole:.3g}')
    frame.add(drawing.element(
        'circle', f'<title>{told}</title>', cx=frame.x(layer),
        cy=frame.top + layout.mlp, r=_size(whole, most, radius),
        class_='ring base', stroke_opacity=0.6))
    if count:
      _mark(frame, layer, layout.mlp, _size(size, most, radius), score, True,
            told)
  if layout.has_neurons:
    _neuron_bars(frame, layout, found['neurons'])


def _neuron_bars(
    frame: drawing.Frame, layout: _Layout, counts: Sequence[int]) -> None:
  floor, half = frame.top + layout.height, 0.36 * _column(frame)
  for layer, count in enumerate(counts):
    if count:
      tall = _BARS * count / max(counts)
      frame.add(drawing.element(
          'rect', f'<title>layer {layer}: {count:,} neurons</title>',
          x=frame.x(layer) - half, width=2 * half, y=floor - tall, height=tall,
          class_='bar base'))
  for text, y in (('neurons', floor - _BARS / 2 - 3), (
      f'to {max(counts):,}', floor - _BARS / 2 + 11)):
    frame.add(drawing.text(frame.left - 10, y, text, text_anchor='end'))


def _edges(
    frame: drawing.Frame, layout: _Layout, edges: Sequence[Sequence[Any]]
) -> None:
  """The weakest first, so that the strongest lie on top."""
  most = max((abs(score) for *_, score in edges), default=0) or 1
  for source, target, score in reversed(edges):
    share = math.sqrt(abs(score) / most)
    style = _HELPS if score >= 0 else _HURTS
    told = html.escape(f'{source} -> {target}: {score:.3g}')
    path = ' '.join(_path(frame, layout, source, target))
    frame.add(drawing.element(
        'path', f'<title>{told}</title>', d=path, class_=f'edge {style}',
        stroke_width=0.6 + 2.6 * share, stroke_opacity=0.16 + 0.6 * share))


def _path(
    frame: drawing.Frame, layout: _Layout, source: str, target: str
) -> Iterator[str]:
  """A curve between two nodes."""
  (column, y), (end, y_end) = (_place(layout, n) for n in (source, target))
  x, x_end = frame.x(column), frame.x(end)
  at = lambda x, y: f'{x:.1f},{frame.top + y:.1f}'
  yield f'M{at(x, y)}'
  if y == y_end == layout.mlp:  # An arc below; a curve goes 3/4 of its depth.
    deep = (_ARCS - 14) * math.sqrt((end - column) / (layout.layers + 1)) / 0.75
    yield f'C{at(x, y + deep)} {at(x_end, y + deep)} {at(x_end, y_end)}'
    return
  middle = (x + x_end) / 2 if end > column else x + 0.5 * _column(frame)
  yield f'C{at(middle, y)} {at(middle, y_end)} {at(x_end, y_end)}'


def _place(layout: _Layout, name: str) -> tuple[float, float]:
  """Column and height of a node."""
  if name in ('input', 'logits'):
    return (-1 if name == 'input' else layout.layers), layout.mlp
  layer, head, mlp_layer = _NODE.fullmatch(name).groups()
  if mlp_layer is not None:
    return int(mlp_layer), layout.mlp
  return int(layer), layout.row_of(int(head)).y
