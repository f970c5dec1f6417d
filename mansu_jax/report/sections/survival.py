"""How much of the edit remains after quantization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg

Record = dict[str, Any]

_COLUMNS = ('moved', 'codes changed', 'moved, code unchanged',
            'median |d| / dist', 'carried', 'cosine')
_CAPTION = (
    'Moved: weights that differ from the base\'s. Codes changed: weights whose'
    ' quantized code changed. Moved, code unchanged: changes that rounding'
    ' removes. These three are shares of all weights, embeddings included.'
    ' |d| / dist: size of a weight\'s change divided by its distance to the'
    ' boundary of its quantization bin; above 1 the code changes. Carried:'
    ' projection of the quantized edit on the edit, 1 if quantization keeps all'
    ' of it. Cosine: between the edit before and after quantization.')


def section(record: Record) -> document.Section:
  """Survival of the edit under each quantizer."""
  rows, by_leaf, plots = [], [], []
  for scheme, found in record['survival'].items():
    details = record['survival_details'].get(scheme)
    rows.append((scheme, *_cells(found)))
    by_leaf += _leaf_rows(scheme, details)
    plots += _plots(scheme, details)
  blocks: list[document.Block] = [document.Table(
      ('quantizer', *_COLUMNS), tuple(rows),
      caption=f'Survival of the edit under each quantizer. {_CAPTION}')]
  blocks += map(document.Text, _remarks(record))
  if by_leaf:
    blocks.append(document.Table(
        ('quantizer', 'parameter', *_COLUMNS), tuple(by_leaf), labels=2,
        caption='The same figures for each parameter that moved; shares are of'
        ' all weights of the model.'))
  blocks.append(document.Plots(tuple(plots)) if plots else document.Text(
      'No weight moved, so there is no histogram.'))
  return document.Section('Survival of the edit under quantization',
                          tuple(blocks))


def _remarks(record: Record) -> Iterator[str]:
  fitted = [name for name, found in record['quantizers'].items()
            if not found['holds_scale']]
  if fitted:
    yield (f'{words.listing(fitted)} fit the codes of a whole block or matrix'
           ' together, so one moved weight can change the codes of others.'
           ' Codes changed includes these.')


def _cells(found: Record) -> tuple[str, ...]:
  return (*(words.percent(found.get(k)) for k in (
      'moved', 'changed_codes', 'moved_unchanged')),
          words.significant(found.get('median_ratio')),
          words.number(found.get('carried'), 4),
          words.number(found.get('cosine'), 4))


def _leaf_rows(
    scheme: str, details: Record | None) -> Iterator[tuple[str, ...]]:
  """One row per parameter that moved."""
  for name, leaf in (details or {'leaves': {}})['leaves'].items():
    if leaf['moved']:
      yield scheme, name, *_cells(leaf)


def _plots(scheme: str, details: Record | None) -> Iterator[document.Plot]:
  if details and sum(details['total']['histogram']):
    yield document.Plot(
        f'survival_{scheme}', _histogram(scheme, details),
        f'Moved weights by the size of their change relative to the distance to'
        f' their {scheme} bin boundary. Left of the boundary, rounding removes'
        ' the change. The first and the last bar include all values beyond.')


def _histogram(scheme: str, details: Record) -> str:
  edges, counts = details['edges'], details['total']['histogram']
  bars = [
      svg.Bar(left, right, count, 'unlearned' if left >= 0 else 'null')
      for left, right, count in zip(edges, edges[1:], counts)]
  return svg.bar_chart(
      f'Size of weight changes relative to the {scheme} bin boundary', bars,
      x_label='log10(|d| / dist)', y_label='number of weights',
      legend=[svg.Key('removed by rounding', 'null'),
              svg.Key('changes the code', 'unlearned')],
      rules=[svg.Rule(0.0, 'bin boundary')])
