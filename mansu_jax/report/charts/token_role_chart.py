"""Where in the prompt scores are: layers from left to right, token_roles below.

A row a place for attention and one for MLPs; the area of a mark is the |sum| of
the layer's scores there, on one scale, and its colour the sign.
"""

from __future__ import annotations

import math
from typing import Any

from mansu_jax.report.charts import drawing

Record = dict[str, Any]

_WIDTH, _ROW, _GAP = 960, 24.0, 16.0
_LEAST = 0.35  # Radius of the smallest mark.
_WORDS = {
    'changed': 'what changes', 'after': 'after it', 'last': 'last token'}
_PARTS = {'attention': 'attention', 'mlp': 'MLPs'}


def draw(title: str, token_roles: Record) -> str:
  """The picture as a whole SVG document.

  Args:
    title: above it.
    token_roles: of a picture of a record's circuit: `names`, and `attention` and
      `mlp`, [L][token_roles].
  """
  names = token_roles['names']
  rows = [(part, i) for part in _PARTS for i in range(len(names))]
  labels = [f'{_PARTS[part]}, {_WORDS[names[i]]}' for part, i in rows]
  layers = len(token_roles['mlp'])
  frame = drawing.Frame(
      title, x=(-0.5, layers - 0.5), y=(0, 1), width=_WIDTH,
      height=len(rows) * _ROW + _GAP, left=12 + drawing.room_for(labels),
      legend=(drawing.Key('for the right answer', 'unlearned'),
              drawing.Key('against it', 'null')))
  frame.x_axis('layer', 8, whole=True)
  most = max((abs(score) for part in _PARTS for some in token_roles[part]
              for score in some), default=0) or 1
  radius = min(_ROW / 2 - 0.5, (frame.x(1) - frame.x(0)) / 2 - 0.3)
  for number, ((part, i), label) in enumerate(zip(rows, labels)):
    y = frame.top + (number + 0.5) * _ROW + (part == 'mlp') * _GAP
    frame.add(drawing.text(frame.left - 10, y + 4, label, text_anchor='end'))
    for layer, scores in enumerate(token_roles[part]):
      if scores[i]:
        frame.add(drawing.mark(
            frame.x(layer), y, max(
                radius * math.sqrt(abs(scores[i]) / most), _LEAST),
            'unlearned' if scores[i] > 0 else 'null',
            f'layer {layer}, {label}: {scores[i]:.3g}'))
  return frame.render()
