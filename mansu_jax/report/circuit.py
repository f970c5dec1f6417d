"""Where the circuit lies, whether it carries the behaviour, and what is in it.

The same for circuits of nodes and of edges, of a run that unlearns, of an audit
and of attribution alone.
"""

from __future__ import annotations

from collections.abc import Iterator
import math
from typing import Any

from mansu_jax.report import circuit_picture
from mansu_jax.report import document
from mansu_jax.report import svg
from mansu_jax.report import words

Record = dict[str, Any]


def section(record: Record) -> document.Section:
  """Where the circuit lies and whether it carries the behaviour."""
  found = record['circuit']
  every = ()
  if 'pair' in record:
    every = (document.Text(
        'Attributed on the base, with this audit\'s flags: where the base keeps'
        ' what was to be forgotten, and not necessarily what was edited.'),)
  if found['selection'] == 'all':
    every = (document.Text(
        'Every weight was trained. The circuit here is the attributed one, on'
        ' which CAD is measured.'),)
  plots = (*_pictures(found), *_faithfulness_plot(found))
  return document.Section('Circuit', (
      *every, document.Plots(plots), document.Table(
          ('circuit', ''), tuple(_rows(found)), labels=2)))


def name(found: Record) -> str:
  """What it is a circuit of, in words."""
  if found['level'] == 'edge':
    return (f'{words.count(found["edges"], "edge")} on'
            f' {words.count(found["nodes"], "node")}')
  return words.listing([
      f'{n:,} {k.replace("_", " ")}' for k, n in found['nodes'].items() if n])


def _rows(found: Record) -> Iterator[tuple[str, str]]:
  yield 'selection', found['selection']
  yield 'level', found['level']
  if found['level'] == 'edge':
    yield 'edges', (f'{found["edges"]:,} of {found["candidates"]:,}, after'
                    ' pruning those that lead nowhere from'
                    f' {found["edges_before_pruning"]:,}')
    yield 'nodes', f'{found["nodes"]:,}'
  else:
    yield 'nodes', name(found)
    yield 'share of all weights', words.percent(found['share_of_weights'])
    yield ('share of the absolute score',
           words.percent(found['share_of_absolute_score']))
  yield 'attribution pairs', str(found['pairs'])
  yield from _faithfulness_rows(found)


def _pictures(found: Record) -> Iterator[document.Plot]:
  """The picture; bars by layer of records that have none."""
  if picture := found.get('picture'):
    yield document.Plot(
        'circuit', circuit_picture.draw(f'Circuit of {name(found)}', picture),
        _caption(found, picture))
    return
  for kind, n in found['nodes'].items():
    if n:
      what = kind.replace('_', ' ')
      yield document.Plot(f'circuit_{kind}', svg.bar_chart(
          f'Circuit by layer: {what}', [
              svg.Bar(layer - 0.4, layer + 0.4, count)
              for layer, count in enumerate(found['by_layer'][kind])],
          x_label='layer', y_label=what, whole=True),
                          f'Where the {n:,} {what} of the circuit are.')


def _caption(found: Record, picture: Record) -> str:
  text = ('Areas are |scores|, on one scale for heads and another for MLPs;'
          ' colour is the sign.')
  if 'edges' in picture:
    shown = len(picture['edges'])
    which = 'all' if shown == found['edges'] else (
        f'the {shown} of largest |score|')
    return text + (f' Of the {found["edges"]:,} edges {which} are drawn, wider'
                   ' and darker with |score|: through the heads, or below where'
                   ' no end is a head.')
  if any(picture['mlp']['neurons']):
    text += (' An MLP\'s ring is the summed |score| of all its neurons, the'
             ' disc of those in the circuit, whose sum gives the colour; bars'
             ' count them.')
  if not any(map(any, picture['heads']['held'])):
    text += ' No head is in the circuit.'
  return text


def _faithfulness_rows(found: Record) -> list[tuple[str, str]]:
  chance, prefix = found.get('random'), found.get('smallest_faithful_prefix')
  rows = [('faithfulness', words.number(found.get('faithfulness')))]
  if chance:
    rows.append((
        f'faithfulness of {words.count(chance["circuits"], "random circuit")}',
        f'mean {words.number(chance["mean"])},'
        f' highest {words.number(chance["max"])}'))
  if prefix:
    reached = prefix['nodes'] >= 0
    rows.append((
        f'smallest prefix of faithfulness {prefix["target"]:g}',
        f'{prefix["nodes"]:,} of {prefix["candidates"]:,} candidate nodes'
        if reached else
        f'none: all {prefix["candidates"]:,} candidate nodes do not reach it'))
  return rows


def _faithfulness_plot(found: Record) -> list[document.Plot]:
  chance = found.get('random')
  if found.get('faithfulness') is None or not chance:
    return []
  rows = [svg.Row('this circuit', [svg.Dot(found['faithfulness'])]),
          svg.Row('random, mean', [svg.Dot(chance['mean'], style='null')]),
          svg.Row('random, highest', [svg.Dot(chance['max'], style='null')])]
  chart = svg.dot_chart(
      'Faithfulness', rows, label='share of the behaviour it carries',
      rules=[svg.Rule(0.0, 'none'), svg.Rule(1.0, 'all')], width=svg.NARROW)
  return [document.Plot(
      'faithfulness', chart,
      'Patching all candidate nodes outside a circuit with their activations'
      ' on the corrupted prompt.')]


def largest(record: Record) -> document.Section:
  """The largest scores of the circuit, by name."""
  found = record['circuit']['largest']
  edge = record['circuit']['level'] == 'edge'
  rows = tuple(
      (entry['name'], words.significant(entry['score'], 4),
       words.percent(entry['resamples'])) for entry in found)
  return document.Section('Largest scores', (
      document.Text(
          'm3 is the MLP of layer 3, a3.h0 head 0 of its attention'
          + (', <q> that head\'s query input.' if edge else
             ', m3.n7 a neuron, a3.kv0 a key/value head.')
          + ' A positive score helps the right answer.'),
      document.Table(('edge' if edge else 'node', 'score',
                      'selected in resamples'), rows)))


def curve(record: Record) -> document.Section:
  """Faithfulness by size, beside random circuits, and its areas."""
  found = record['circuit']
  points = found['curve']
  at = [(math.log10(share), i) for i, share in enumerate(points['share'])
        if share > 0]
  line = lambda key: [(x, points[key][i]) for x, i in at]
  chart = svg.line_chart(
      'Faithfulness by size of the circuit',
      [svg.Series('this ranking', 'unlearned', line('faithfulness')),
       svg.Series('random, mean', 'null', line('random_mean'))],
      bands=[svg.Band('random, range', 'null', [
          (x, points['random_low'][i], points['random_high'][i])
          for x, i in at])],
      x_label='log10(share kept)', y_label='faithfulness', width=svg.WIDE)
  rows = tuple(
      tuple(words.number(points[key][i], 4 if key == 'share' else 3)
            for key in ('share', 'faithfulness', 'random_mean', 'random_low',
                        'random_high')) for i in range(len(points['share'])))
  return document.Section('Faithfulness by size', (
      document.Text(
          f'CPR, the area under the curve, is {words.number(found.get("cpr"))}:'
          ' larger is better. CMD, the area between the curve and 1, is'
          f' {words.number(found.get("cmd"))}: 0 is best.'),
      document.Plots((document.Plot(
          'circuit_curve', chart,
          'Circuits of the highest scores at each size, and random ones.'),)),
      document.Table(('share', 'faithfulness', 'random, mean', 'random, low',
                      'random, high'), rows, labels=0)))
