"""Weights that differ from the base's, by parameter and layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import itertools
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg

Record = dict[str, Any]

_NEARLY_ALL = 0.99


def section(record: Record) -> document.Section:
  """Shares of weights that moved, and how far, by parameter and layer."""
  found = record['movement']
  blocks: list[document.Block] = []
  if found['total']['moved'] > _NEARLY_ALL:
    blocks.append(document.Text(
        'Nearly every weight moved. Either all of them were trained, or the'
        ' model was converted to another storage type or quantized.'))
  if maps := _maps(found['leaves']):
    blocks.append(document.Plots(maps))
  return document.Section('Weights that moved', (*blocks, _table(found)))


def _table(found: Record) -> document.Table:
  rows = [(name, f'{leaf["size"]:,}', *_figures(leaf), _layers(leaf))
          for name, leaf in found['leaves'].items()]
  rows.append(('all', f'{found["total"]["size"]:,}',
               *_figures(found['total']), ''))
  return document.Table(
      ('parameter', 'weights', 'moved', '|d| / |base|', 'cosine',
       'layers that moved'), tuple(rows),
      caption='Differences between the unlearned model and the base, by'
      ' parameter. Moved: share of the weights that differ from the base\'s.'
      ' |d| / |base|: norm of the difference divided by the norm of the base\'s'
      ' weights. Cosine: between the weights before and after; 1 is unchanged.')


def _figures(entry: Record) -> tuple[str, str, str]:
  return (words.percent(entry['moved']),
          words.significant(entry['relative']),
          words.number(entry['cosine'], 4))


def _layers(leaf: Record) -> str:
  """`13-23 of 30` for a stacked parameter; '' for any other."""
  by_layer = leaf.get('by_layer')
  return '' if by_layer is None else layers(by_layer) or 'none'


def layers(by_layer: Sequence[Record]) -> str | None:
  """The layers that moved, as `0 and 13-23 of 30`; None for no layer."""
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
  """Heat maps over layers of the stacked parameters that moved."""
  stacked = {name.removeprefix('layers/'): leaf['by_layer']
             for name, leaf in leaves.items()
             if 'by_layer' in leaf and leaf['moved']}
  if not stacked:
    return ()
  shares = _map('Share of weights that moved', stacked, 'moved', words.percent)
  sizes = _map('Relative size of the change, |d| / |base|', stacked,
               'relative', words.significant)
  return (
      document.Plot('moved_share', shares, 'Share of weights that moved, by'
                    ' parameter and layer; the darkest cell is the largest.'),
      document.Plot('moved_norm', sizes, 'Norm of the difference divided by the'
                    ' norm of the base\'s weights, by parameter and layer; the'
                    ' darkest cell is the largest.'))


def _map(title: str, stacked: dict[str, list[Record]], key: str,
         name: Callable[[float], str]) -> str:
  return svg.heat_map(
      title, [svg.Strip(label, [entry[key] or 0.0 for entry in by_layer])
              for label, by_layer in stacked.items()],
      x_label='layer', name=name)
