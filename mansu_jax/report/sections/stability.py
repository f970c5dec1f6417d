"""Stability of the circuit under other facts and other phrasings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg

Record = dict[str, Any]

_MEASURES = ('kept', 'jaccard', 'spearman', 'spearman_absolute')


class _Faithfulness(NamedTuple):
  """Faithfulness on one set of pairs."""

  label: str
  own: Record  # Of this circuit.
  other: Record  # Of the circuit selected from the other pairs.
  random: Record | None


def section(record: Record) -> document.Section:
  """Overlap and faithfulness of circuits selected from other pairs."""
  found = record['circuit']['stability']
  blocks: list[document.Block] = []
  if 'edge_faithfulness' in record['circuit']:
    blocks.append(document.Text(
        'This section is about the circuit of edges. Training edits the weights'
        ' at the ends of these edges.'))
  if 'reason' in found:
    blocks.append(document.Text(f'Not measured: {found["reason"]}.'))
  else:
    blocks += _measured(found, record['circuit']['level'])
  for use, entry in found.get('phrasings', {}).items():
    if 'reason' in entry:
      label = words.PHRASINGS[use]
      blocks.append(document.Text(
          f'{label[:1].upper()}{label[1:]} were not compared:'
          f' {entry["reason"]}.'))
  return document.Section('Stability of the circuit', tuple(blocks))


def _measured(found: Record, level: str) -> Iterator[document.Block]:
  random = 'random circuits ' + (
      'selected the same way' if level == 'edge' else 'of the same shape')
  if warning := found['random'].get('warning'):
    yield document.Text(warning)
  yield document.Text(
      'Does the circuit depend on the pairs that it was selected from? Circuits'
      ' of the same budget are selected from other pairs and compared with it:')
  yield document.Bullets(tuple(_comparisons(found, level)))
  yield document.Plots((
      _overlap_plot(found, random), _faithfulness_plot(found)))
  yield _overlap_table(found, random)
  yield _faithfulness_table(found)


def _rephrased(found: Record) -> dict[str, Record]:
  """The phrasings that were compared."""
  return {use: entry for use, entry in found.get('phrasings', {}).items()
          if 'kept' in entry}


def _comparisons(found: Record, level: str) -> Iterator[str]:
  facts = f'{found["facts"]} facts'
  if found['groups'] != found['facts']:
    facts = f'{found["groups"]} groups of {facts}'
  yield (f'Resampled facts: {facts}, drawn with replacement'
         f' {found["resamples"]["draws"]} times. A sample shares most facts'
         ' with the original, so this shows the noise of selection alone.'
         f' {words.percent(found["resamples"]["firm"])} of the circuit is in'
         ' at least 95 % of the resampled circuits.')
  yield (f'Disjoint halves: {found["halves"]["draws"]} random splits of the'
         ' facts into halves. The circuits of the two halves are compared with'
         ' each other.')
  if reworded := _rephrased(found):
    labels = words.listing([words.PHRASINGS[use] for use in reworded])
    yield (f'Other phrasings: the same facts in {labels}. The circuit was not'
           ' selected from these.')
  drawn = ('selected and pruned the same way from scores that are permuted'
           ' among the edges into each layer' if level == 'edge' else
           'with the same number of nodes in each layer')
  yield (f'Random circuits: {found["random"]["draws"]}, {drawn}. They show the'
         ' overlap by chance.')


def _compared(found: Record, random: str) -> Iterator[tuple[str, Record]]:
  yield 'resampled facts', found['resamples']
  yield 'disjoint halves', found['halves']
  for use, entry in _rephrased(found).items():
    yield words.PHRASINGS[use], entry
  yield random, found['random']


def _short(label: str) -> str:
  """A label that fits a narrow chart."""
  return label.split(' (')[0].split(' of ')[0].split(' selected')[0]


def _estimate(values: Record) -> Record:
  """A value, or a mean over draws, with its interval."""
  return {'value': values.get('value', values.get('mean')),
          'interval': values['interval']}


def _overlap_table(found: Record, random: str) -> document.Table:
  rows = tuple(
      (label, *(words.estimate(_estimate(entry[key]), 2) if key in entry
                else '' for key in _MEASURES))
      for label, entry in _compared(found, random))
  jackknife = (
      ' or, for other phrasings, the 95 % interval of a jackknife that leaves'
      ' out a quarter of the facts at a time') if _rephrased(found) else ''
  return document.Table(
      ('circuits selected from', 'share selected again', 'Jaccard index',
       'Spearman, scores', 'Spearman, |scores|'), rows,
      caption='Overlap with circuits that were selected from other pairs. Share'
      ' selected again: share of the circuit that the other circuit contains.'
      ' Jaccard index: intersection over union. Spearman: rank correlation of'
      ' all candidates\' scores. Brackets: the range of 95 % of the draws'
      f'{jackknife}. Compare each row with the random circuits.')


def _overlap_plot(found: Record, random: str) -> document.Plot:
  rows = []
  for label, entry in _compared(found, random):
    again = _estimate(entry['kept'])
    style = 'null' if entry is found['random'] else 'unlearned'
    rows.append(svg.Row(
        _short(label), [svg.Dot(again['value'], again['interval'], style)]))
  return document.Plot('stability_overlap', svg.dot_chart(
      'Share of the circuit selected again', rows,
      label='share selected again', limits=(0.0, 1.0), width=svg.NARROW),
                       'Share of the circuit that circuits selected from other'
                       ' pairs contain.')


def _faithful(found: Record) -> Iterator[_Faithfulness]:
  halves = found['halves']
  yield _Faithfulness('its own pairs', halves['own_faithfulness'],
                      halves['faithfulness'], None)
  for use, entry in found.get('phrasings', {}).items():
    if 'faithfulness' in entry:
      yield _Faithfulness(
          words.PHRASINGS[use], entry['faithfulness'],
          entry['own_faithfulness'], entry['random_faithfulness'])


def _faithfulness_table(found: Record) -> document.Table:
  rows = tuple(
      (row.label, words.estimate(row.own, 2), words.estimate(row.other, 2),
       words.estimate(row.random, 2), str(row.own['n']))
      for row in _faithful(found))
  rephrased = (' On other phrasings, the other circuit is selected from these'
               ' phrasings.') if len(rows) > 1 else ''
  return document.Table(
      ('measured on', 'this circuit', 'other circuit', 'random circuits',
       'pairs'), rows,
      caption='Faithfulness with 95 % intervals by fact: the share of the'
      ' behaviour that a circuit carries. On its own pairs, the other circuit'
      ' is selected from the half of the facts that does not contain the'
      ' pair\'s fact.'
      f'{rephrased}')


def _faithfulness_plot(found: Record) -> document.Plot:
  measured = list(_faithful(found))
  styles = ('unlearned', 'base', 'null')
  rows = [svg.Row(_short(row.label), [
      svg.Dot(entry['value'], entry['interval'], style)
      for entry, style in zip(row[1:], styles) if entry]) for row in measured]
  legend = [svg.Key('this circuit', 'unlearned'),
            svg.Key('other circuit', 'base')]
  if any(row.random for row in measured):
    legend.append(svg.Key('random circuits', 'null'))
  return document.Plot('stability_faithfulness', svg.dot_chart(
      'Faithfulness on other pairs', rows, label='share of the behaviour',
      legend=legend, width=svg.NARROW),
                       'Faithfulness of this circuit and of circuits selected'
                       ' from other pairs, with 95 % intervals by fact.')
