"""How firmly the circuit rests on its pairs: other facts, other words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report.charts import svg
from mansu_jax.report import words

Record = dict[str, Any]

_PHRASINGS = (  # What is said where some are compared.
    ' Phrasings: the same facts in words that gave no part of the circuit.',
    ', and of phrasings 95 % intervals of the jackknife, a quarter of the facts'
    ' left out at a time')
_MEASURES = ('kept', 'jaccard', 'spearman', 'spearman_absolute')


def section(record: Record) -> document.Section:
  """Overlap and faithfulness of circuits of other pairs."""
  found, title = record['circuit']['stability'], 'Robustness of the circuit'
  alike = ('selected alike' if record['circuit']['level'] == 'edge' else
           'its shape')
  blocks = []
  if 'edge_faithfulness' in record['circuit']:
    blocks.append(document.Text(
        'Of the circuit of edges; the weights at their ends are edited.'))
  if 'reason' in found:
    blocks.append(document.Text(
        f'Pairs were not resampled: {found["reason"]}.'))
  else:
    if warning := found['random'].get('warning'):
      blocks.append(document.Text(warning))
    blocks += [document.Text(_explained(found)), document.Plots((
        _overlap_plot(found, alike), _faithfulness_plot(found))),
               document.Table(
                   ('selected from', 'share kept', 'Jaccard', 'Spearman',
                    'Spearman of |score|'), tuple(_overlap_rows(found, alike))),
               document.Table(
                   ('on', 'this circuit', 'the other', 'random', 'pairs'),
                   tuple(_faithfulness_rows(found)))]
  for use, entry in found.get('phrasings', {}).items():
    if 'reason' in entry:
      blocks.append(document.Text(
          f'The {use} phrasings were not compared: {entry["reason"]}.'))
  return document.Section(title, tuple(blocks))


def _explained(found: Record) -> str:
  groups = (f'{found["facts"]} facts' if found['groups'] == found['facts'] else
            f'{found["groups"]} groups of {found["facts"]} facts')
  reworded = any('kept' in entry
                 for entry in found.get('phrasings', {}).values())
  return (
      'The circuit is selected again, at the same budget, from other pairs.'
      f' Resampled: {groups}, drawn with replacement'
      f' {found["resamples"]["draws"]} times; a sample shares most facts with'
      ' the circuit\'s own, so this is the noise of selection alone, and'
      f' {words.percent(found["resamples"]["firm"])} of the circuit is in at'
      ' least 95 % of the samples. Halves: two circuits of disjoint halves of'
      f' the facts, {found["halves"]["draws"]} times.'
      f'{_PHRASINGS[0] if reworded else ""} Share kept and Jaccard are'
      ' of the two circuits and mean nothing beside what random ones give: of'
      ' nodes as many in each layer, of edges those selected and pruned alike'
      ' by scores permuted among the edges into each layer. Spearman is of all'
      ' candidates\' scores. Brackets: ranges of 95 % of the draws'
      f'{_PHRASINGS[1] if reworded else ""}.')


def _compared(found: Record, alike: str) -> Iterator[tuple[str, Record]]:
  yield 'resampled facts', found['resamples']
  yield 'disjoint halves', found['halves']
  for use, entry in found.get('phrasings', {}).items():
    if 'kept' in entry:
      yield f'{use} phrasings', entry
  yield f'random, {alike}', found['random']


def _entry(values: Record) -> Record:
  """A mean over draws, or a value, as an estimate."""
  return {'value': values.get('value', values.get('mean')),
          'interval': values['interval']}


def _overlap_rows(found: Record, alike: str) -> Iterator[tuple[str, ...]]:
  for label, entry in _compared(found, alike):
    yield label, *(words.estimate(_entry(entry[key]), 2) if key in entry
                   else '' for key in _MEASURES)


def _overlap_plot(found: Record, alike: str) -> document.Plot:
  rows = []
  for label, entry in _compared(found, alike):
    kept = _entry(entry['kept'])
    style = 'null' if entry is found['random'] else 'unlearned'
    rows.append(svg.Row(
        label, [svg.Dot(kept['value'], kept['interval'], style)]))
  return document.Plot('robustness_overlap', svg.dot_chart(
      'Share of the circuit selected again', rows, label='share kept',
      span=(0.0, 1.0), width=svg.NARROW),
                       'Of circuits that other pairs give.')


def _faithful(found: Record) -> Iterator[tuple[str, Record, Record, Any, int]]:
  halves = found['halves']
  yield ('its own pairs', halves['own_faithfulness'], halves['faithfulness'],
         None, halves['faithfulness']['n'])
  for use, entry in found.get('phrasings', {}).items():
    if 'faithfulness' in entry:
      yield (f'{use} phrasings', entry['faithfulness'],
             entry['own_faithfulness'], entry['random_faithfulness'],
             entry['faithfulness']['n'])


def _faithfulness_rows(found: Record) -> Iterator[tuple[str, ...]]:
  for label, own, other, random, pairs in _faithful(found):
    yield (label, words.estimate(own, 2), words.estimate(other, 2),
           words.estimate(random, 2), str(pairs))


def _faithfulness_plot(found: Record) -> document.Plot:
  rows = [svg.Row(label, [
      svg.Dot(entry['value'], entry['interval'], style)
      for entry, style in zip(entries, ('unlearned', 'base', 'null')) if entry])
          for label, *entries, _ in _faithful(found)]
  return document.Plot('robustness_faithfulness', svg.dot_chart(
      'Faithfulness on other pairs', rows, label='share of the behaviour',
      legend=[svg.Key('this circuit', 'unlearned'), svg.Key('other', 'base'),
              *[svg.Key('random', 'null')][:len(rows) - 1]],
      width=svg.NARROW),
                       'The other circuit: on its own pairs that of the half of'
                       ' the facts that a pair is not of'
                       + (', on phrasings that of these phrasings'
                          if len(rows) > 1 else '')
                       + '. Intervals are by fact.')
