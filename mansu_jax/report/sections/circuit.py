"""Where the circuit lies, whether it carries the behaviour, and what is in it.

The same for circuits of nodes and of edges, of a run that unlearns, of an audit
and of attribution alone.
"""

from __future__ import annotations

from collections.abc import Iterator
import math
from typing import Any, NamedTuple

from mansu_jax.report.charts import circuit_picture
from mansu_jax.report import document
from mansu_jax.report.charts import token_role_chart
from mansu_jax.report.charts import svg
from mansu_jax.report import words

Record = dict[str, Any]
_LEFT_ALONE = {
    'neuron': '; attention is left as it is.',
    'head': '; MLPs are left as they are.'}
_KV = (' A key/value head is weights that may move, and no node of its own: it'
       ' is the query heads that share it.')
_SELECTED = {
    'top': 'Circuits of the highest scores',
    'greedy': 'Circuits from the logits down, by the highest score that leads'
              ' there,'}


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
  if warning := found.get('random', {}).get('warning'):
    every += (document.Text(warning),)
  plots = (*_pictures(found), *_faithfulness_plot(found))
  return document.Section('Circuit', (
      *every, document.Plots(plots), document.Table(
          ('circuit', ''), tuple(_rows(found)), labels=2)))


def beside_random(found: Record, alike: str) -> str:
  """Faithfulness of random circuits, in words; '' where none were run."""
  random = found['random']
  if random['mean'] is None:
    return ''
  if random.get('same') == random['circuits']:
    return f'random circuits {alike} are the circuit itself'
  return (f'random circuits {alike} {words.number(random["mean"], 2)} on'
          f' average and at most {words.number(random["max"], 2)}')


def name(found: Record) -> str:
  """What it is a circuit of, in words."""
  edges = found.get('edges')
  if not _by_kind(found):
    return (f'{words.count(edges, "edge")} on'
            f' {words.count(found["nodes"], "node")}')
  nodes = words.listing([
      f'{n:,} {k.replace("_", " ")}' for k, n in found['nodes'].items() if n])
  if edges is None:
    return nodes
  return f'{nodes} at the ends of {words.count(edges, "edge")}'


def _by_kind(found: Record) -> bool:
  """Whether nodes are counted by kind: not where edges are all there is.

  A run at level edge edits the weights of nodes, which it counts by kind.
  """
  return isinstance(found['nodes'], dict)


def _rows(found: Record) -> Iterator[tuple[str, str]]:
  yield 'selection', found['selection']
  yield 'level', found['level']
  if not _by_kind(found):
    yield 'edges', (f'{found["edges"]:,} of {found["candidates"]:,}, after'
                    ' pruning those that lead nowhere from'
                    f' {found["edges_before_pruning"]:,}')
    yield 'nodes', f'{found["nodes"]:,}'
  else:
    yield 'nodes', name(found)
    yield 'share of all weights', words.percent(found['share_of_weights'])
    yield ('share of the absolute score',
           words.percent(found['share_of_absolute_score']))
  yield 'attribution pairs', str(found['pairs']) + ''.join(
      f'; {found[key]} of the file {what}' for key, what in (
          ('pairs_skipped', 'left out, for prompts of unequal token length'),
          ('pairs_as_ids', 'given as token ids')) if found.get(key))
  if 'no_curve' in found:
    yield 'faithfulness by size', f'not measured: {found["no_curve"]}'
  yield from _faithfulness_rows(found)


def _pictures(found: Record) -> Iterator[document.Plot]:
  """The picture; bars by layer of records that have none."""
  if picture := found.get('summary'):
    yield document.Plot(
        'circuit', circuit_picture.draw(f'Circuit of {name(found)}', picture),
        _caption(found, picture))
    if places := picture.get('token_roles'):
      yield document.Plot(
          'circuit_places', token_role_chart.draw('Where in the prompt', places),
          'Sums of the scores of all heads, and of all neurons, of a layer,'
          ' whether in the circuit or not, by where in the prompt they act:'
          ' from the first to the last token that the corrupted prompt changes'
          ' (the subject, of prompts about facts), after these, and at the last'
          ' token, whose logits are asked. Areas are |sums|, on one scale.')
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
  if found['level'] == 'head':
    text += (' MLPs are no candidates at this level; a ring is the summed'
             ' |score| of all neurons of one.')
  elif any(picture['mlp']['neurons']):
    text += (' An MLP\'s ring is the summed |score| of all its neurons, the'
             ' disc of those in the circuit, whose sum gives the colour; bars'
             ' count them.')
  if not any(map(any, picture['heads']['held'])):
    text += ' No head is in the circuit.'
  return text


def _faithfulness_rows(found: Record) -> list[tuple[str, str]]:
  chance, prefix = found.get('random'), found.get('smallest_faithful_prefix')
  rows = [('faithfulness', words.number(found.get('faithfulness')))]
  if 'edge_faithfulness' in found:
    rows.append(('faithfulness of the edges themselves',
                 words.number(found['edge_faithfulness'])))
  if 'faithfulness_of_none' in found:
    rows.append(('faithfulness of the empty circuit',
                 words.number(found['faithfulness_of_none'])))
  if chance:
    rows.append((
        f'faithfulness of {words.count(chance["circuits"], "random circuit")}',
        f'mean {words.number(chance["mean"])},'
        f' highest {words.number(chance["max"])}'
        + (f'; {chance["same"]} of them are the circuit itself'
           if chance.get('same') else '')))
  if prefix:
    what = 'edges' if 'edges' in prefix else 'nodes'
    every = f'{prefix["candidates"]:,} candidate {what}'
    rows.append((
        f'smallest prefix of faithfulness {prefix["target"]:g}',
        f'{prefix[what]:,} of {every}' if prefix[what] >= 0 else
        f'none: all {every} do not reach it'))
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
  caption = ('Every edge outside a circuit carries what the corrupted prompt'
             ' gave.') if not _by_kind(found) else (
                 'Patching all candidate nodes outside a circuit with their'
                 ' activations on the corrupted prompt'
                 + _LEFT_ALONE.get(found['level'], '.')
                 + _KV * ('kv_heads' in found['nodes']))
  return [document.Plot('faithfulness', chart, caption)]


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


class _Point(NamedTuple):
  """Faithfulness at one size."""

  share: float
  faithfulness: float
  mean: float | None  # Of random circuits, with the range.
  low: float | None
  high: float | None


def _points(curve: Any) -> list[_Point]:
  """The curve's points, from a list of them or from lists by name."""
  if isinstance(curve, dict):
    return [_Point(*some) for some in zip(*(curve[key] for key in (
        'share', 'faithfulness', 'random_mean', 'random_low', 'random_high')))]
  return [_Point(p['share'], p['faithfulness'], *(
      (p.get('random') or {}).get(key) for key in ('mean', 'min', 'max')))
          for p in curve]


def _no_comparison(curve: Any) -> str:
  """At which sizes random circuits are the ranking's own, in a sentence."""
  if isinstance(curve, dict):  # An older record.
    return ''
  sizes = [f'{p["size"]:,} ({p["random"]["same"]})' for p in curve[:-1]
           if p.get('size') and (p.get('random') or {}).get('same')]
  if not sizes:
    return ''
  return (' For want of other candidates some random circuits are those of the'
          f' ranking itself, at sizes (how many): {words.listing(sizes)}.')


def curve(record: Record) -> document.Section:
  """Faithfulness by size, beside random circuits, and its areas."""
  found = record['circuit']
  points = _points(found['curve'])
  drawn = [(math.log10(p.share), p) for p in points if p.share > 0]
  random = [(x, p) for x, p in drawn if p.mean is not None]
  same = _no_comparison(found['curve'])
  series = [svg.Series('this ranking', 'unlearned', [
      (x, p.faithfulness) for x, p in drawn])]
  bands = []
  if random:
    series.append(svg.Series(
        'random, mean', 'null', [(x, p.mean) for x, p in random]))
    bands.append(svg.Band('', 'null', [(x, p.low, p.high) for x, p in random]))
  chart = svg.line_chart(
      'Faithfulness by size of the circuit', series, bands=bands,
      x_label='log10(share of all candidates)', y_label='faithfulness',
      width=svg.WIDE)
  beside = {key: values for key, values in found.get(
      'random_curves', {}).items() if values}
  tell = lambda key: words.number(found.get(key)) + (
      f' (random {words.number(sum(beside[key]) / len(beside[key]))})'
      if key in beside else '')
  return document.Section('Faithfulness by size', (
      document.Text(
          f'CPR, the area under the curve, is {tell("cpr")}: larger is better.'
          f' CMD, the area between the curve and 1, is {tell("cmd")}: 0 is'
          ' best. Both are over the share itself, where sizes below a tenth'
          f' count little.{same}'),
      document.Plots((document.Plot(
          'circuit_curve', chart,
          f'{_SELECTED.get(found["selection"], _SELECTED["top"])} at each size,'
          ' and the mean and range of random ones as large'
          f'{"" if _by_kind(found) else " before pruning"}.'),)),
      document.Table(
          ('share', 'faithfulness', 'random, mean', 'least', 'most'),
          tuple((words.significant(p.share), *map(words.number, p[1:]))
                for p in points), labels=0)))
