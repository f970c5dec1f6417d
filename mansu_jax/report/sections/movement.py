"""Which weights moved: by leaf, and by layer of each leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import itertools
from typing import Any

from mansu_jax.report import document
from mansu_jax.report.charts import svg
from mansu_jax.report import words

Record = dict[str, Any]

_NEARLY_ALL = 0.99


def movement(record: Record) -> document.Section:
  """Shares of weights that moved, and how far, by leaf and layer."""
  found = record['movement']
  rows = [(name, f'{leaf["size"]:,}', *_figures(leaf), _layers(leaf))
          for name, leaf in found['leaves'].items()]
  rows.append(('all', f'{found["total"]["size"]:,}',
               *_figures(found['total']), ''))
  blocks: list[document.Block] = [
      document.Text(
          'A weight moved if it is not equal to the base\'s. |d| / |base| is'
          ' the norm of the difference over that of the base\'s weights; the'
          ' cosine is between the weights before and after.')]
  if found['total']['moved'] > _NEARLY_ALL:
    blocks.append(document.Text(
        'Nearly every weight moved: all of them were trained, or the model'
        ' went through another storage type or quantization on its way.'))
  maps = _maps(found['leaves'])
  if maps:
    blocks.append(document.Plots(maps))
  blocks.append(document.Table(
      ('leaf', 'weights', 'moved', '|d| / |base|', 'cosine',
       'layers that moved'), tuple(rows)))
  return document.Section('Which weights moved', tuple(blocks))


def _figures(entry: Record) -> tuple[str, str, str]:
  return (words.percent(entry['moved']),
          words.significant(entry['relative']),
          words.number(entry['cosine'], 4))


def _layers(leaf: Record) -> str:
  """`13-23 of 30` of a stacked leaf."""
  by_layer = leaf.get('by_layer')
  return '' if by_layer is None else layers(by_layer) or 'none'


def layers(by_layer: Sequence[Record]) -> str | None:
  """Which layers moved, as ranges of those that there are; None: none."""
  moved = [i for i, entry in enumerate(by_layer) if entry['moved']]
  if not moved:
    return None
  runs = []
  for _, run in itertools.groupby(enumerate(moved), lambda p: p[1] - p[0]):
    numbers = [number for _, number in run]
    ends = dict.fromkeys((numbers[0], numbers[-1]))
    runs.append('-'.join(map(str, ends)))
  return f'{words.listing(runs)} of {len(by_layer)}'


def _maps(leaves: dict[str, Record]) -> tuple[document.Plot, ...]:
  """Heat maps over layers of the stacked leaves that moved."""
  stacked = {name.removeprefix('layers/'): leaf['by_layer']
             for name, leaf in leaves.items()
             if 'by_layer' in leaf and leaf['moved']}
  if not stacked:
    return ()
  shares = _map('Share of weights that moved', stacked, 'moved', words.percent)
  sizes = _map('|d| / |base|', stacked, 'relative', words.significant)
  return (
      document.Plot('moved_share', shares, 'Share of the weights of each leaf'
                    ' and layer that moved; the darkest is the largest.'),
      document.Plot('moved_norm', sizes, 'Norm of the difference over the'
                    ' base\'s, of each leaf and layer.'))


def _map(title: str, stacked: dict[str, list[Record]], key: str,
         name: Callable[[float], str]) -> str:
  return svg.heat_map(
      title, [svg.Strip(label, [entry[key] or 0.0 for entry in by_layer])
              for label, by_layer in stacked.items()],
      x_label='layer', name=name)
