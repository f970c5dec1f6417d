"""Draws attribution scores by layer and by the role of the prompt's token.

Layers run from left to right. Each token role has a row for attention and one
for MLPs. The area of a mark is the |sum| of the layer's scores at these tokens,
on one scale for all marks; its colour is the sign of the sum.
"""

from __future__ import annotations

import math
from typing import Any

from mansu_jax.report.charts import drawing

Record = dict[str, Any]

_WIDTH, _ROW, _GAP = 960, 24.0, 16.0
_MIN_RADIUS = 0.35  # Pixels.
_ROLES = {
    'changed': 'changed tokens', 'after': 'tokens after them',
    'last': 'last token'}
_PARTS = {'attention': 'attention', 'mlp': 'MLPs'}


def draw(title: str, token_roles: Record) -> str:
  """The chart as a complete SVG document.

  Args:
    title: Title of the chart.
    token_roles: `summary.token_roles` of a record's circuit: `names` of R
      roles, and sums of scores `attention` and `mlp`, [L][R].
  """
  names = token_roles['names']
  rows = [(part, i) for part in _PARTS for i in range(len(names))]
  labels = [f'{_PARTS[part]}, {_ROLES[names[i]]}' for part, i in rows]
  layers = len(token_roles['mlp'])
  frame = drawing.Frame(
      title, x=(-0.5, layers - 0.5), y=(0, 1), width=_WIDTH,
      height=len(rows) * _ROW + _GAP, left=12 + drawing.label_width(labels),
      legend=(drawing.Key('supports the right answer', 'unlearned'),
              drawing.Key('opposes the right answer', 'null')))
  frame.x_axis('layer', 8, integers=True)
  largest = max((abs(score) for part in _PARTS for scores in token_roles[part]
                 for score in scores), default=0) or 1
  for number, ((part, i), label) in enumerate(zip(rows, labels)):
    y = frame.top + (number + 0.5) * _ROW + (part == 'mlp') * _GAP
    frame.add(drawing.text(frame.left - 10, y + 4, label, text_anchor='end'))
    scores = [by_role[i] for by_role in token_roles[part]]
    _draw_row(frame, scores, y, label, largest)
  return frame.render()


def _draw_row(
    frame: drawing.Frame, scores: list[float], y: float, label: str,
    largest: float) -> None:
  """Draws one row of marks at a height in pixels; none for a score of 0."""
  max_radius = min(_ROW / 2 - 0.5, (frame.x(1) - frame.x(0)) / 2 - 0.3)
  for layer, score in enumerate(scores):
    if score:
      radius = max_radius * math.sqrt(abs(score) / largest)
      frame.add(drawing.mark(
          frame.x(layer), y, max(radius, _MIN_RADIUS),
          'unlearned' if score > 0 else 'null',
          f'layer {layer}, {label}: {score:.3g}'))
