"""What changed inside: survival and training."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report.charts import svg
from mansu_jax.report import words

Record = dict[str, Any]

_SURVIVAL = ('moved', 'codes changed', 'moved, code unchanged',
             'median |d|/dist', 'carried', 'cosine')


def survival(record: Record) -> document.Section:
  """How much of the edit each quantizer leaves."""
  rows, leaves, plots = [], [], []
  for scheme, found in record['survival'].items():
    rows.append((scheme, *_survival_cells(found)))
    details = record['survival_details'].get(scheme)
    leaves += _leaf_rows(scheme, details)
    if details and sum(details['total']['histogram']):
      plots.append(document.Plot(
          f'survival_{scheme}', _histogram(scheme, details),
          f'Weights that moved, by how far they went towards the boundary of'
          f' their {scheme} code. Left of the boundary an edit is rounded'
          ' away; the end bars hold what lies beyond.'))
  blocks: list[document.Block] = [
      document.Text(
          'Shares are of all weights, embeddings included. |d|/dist is the'
          ' size of an update over the distance to the boundary of its code;'
          ' carried is the part of the edit that quantization leaves along its'
          ' own direction; the cosine is between the edit as quantized and as'
          ' made.'),
      document.Table(('quantizer', *_SURVIVAL), tuple(rows))]
  if fitted := [name for name, found in record['quantizers'].items()
                if not found['holds_scale']]:
    blocks.append(document.Text(
        f'The codes of {words.listing(fitted)} are fitted to a block or a'
        ' matrix as a whole: where one weight moves, others there change their'
        ' codes too, and are counted.'))
  if leaves:
    blocks.append(document.Table(
        ('quantizer', 'leaf', *_SURVIVAL), tuple(leaves), labels=2))
  blocks.append(document.Plots(tuple(plots)) if plots else document.Text(
      'No weight moved, so there is nothing to plot.'))
  return document.Section('Survival of the edit', tuple(blocks))


def _survival_cells(found: Record) -> tuple[str, ...]:
  return (*(words.percent(found.get(k)) for k in (
      'moved', 'changed_codes', 'moved_unchanged')),
          words.significant(found.get('median_ratio')),
          words.number(found.get('carried'), 4),
          words.number(found.get('cosine'), 4))


def _leaf_rows(
    scheme: str, details: Record | None) -> list[tuple[str, ...]]:
  """A row each leaf that moved."""
  return [(scheme, name, *_survival_cells(leaf))
          for name, leaf in (details or {'leaves': {}})['leaves'].items()
          if leaf['moved']]


def _histogram(scheme: str, details: Record) -> str:
  edges, counts = details['edges'], details['total']['histogram']
  bars = [
      svg.Bar(left, right, count, 'unlearned' if left >= 0 else 'null')
      for left, right, count in zip(edges, edges[1:], counts)]
  return svg.bar_chart(
      f'Update size against distance to the {scheme} code boundary', bars,
      x_label='log10(|d| / dist)', y_label='weights',
      legend=[svg.Key('rounded away', 'null'),
              svg.Key('changes the code', 'unlearned')],
      rules=[svg.Rule(0.0, 'boundary')])


def training(record: Record) -> document.Section:
  """The loop's curves, and the retain KL it ended with."""
  curves = [
      ('forget_nll', 'Forget NLL', 'nats an answer',
       'Loss of the answers to forget, on the batch of each step.'),
      ('retain_kl', 'Retain KL to the base', 'nats a token',
       'KL to the full-precision base on the retained facts of each step.'),
      ('moved', 'Weights changed', '% of all weights',
       'Weights that differ from the base\'s.')]
  plots = []
  for key, title, unit, caption in curves:
    series = _series(record, key, 100 if key == 'moved' else 1)
    if series:
      plots.append(document.Plot(f'training_{key}', svg.line_chart(
          title, series, x_label='step', y_label=unit), caption))
  kl = record['retain_kl']
  predicted = kl['fisher_estimate_nats_per_sequence']
  text = (
      'Retain KL of the final weights on the'
      f' {words.count(kl["sequences"], "sequence")} of the Fisher:'
      f' {words.significant(kl["measured_nats_per_sequence"])} nats a sequence;'
      + (' the diagonal Fisher gave no estimate of it.' if predicted is None
         else ' the diagonal Fisher\'s estimate is'
         f' {words.significant(predicted)}.')
      + ' On the training batches of the last tenth of the steps at each view,'
      ' in nats a token: ' + ', '.join(
          f'{view} {words.significant(value)}'
          for view, value in kl['seen_by_view'].items()) + '.')
  swapped = record.get('swapped_prompts')
  if swapped:
    text += (
        f' Retain phrasings asked of {swapped["subjects"]} forgotten subjects:'
        f' {swapped["kept"]} kept, {swapped["leaking"]} left out because the'
        ' base gives a forgotten answer, and'
        f' {swapped["asked_elsewhere"]} that the forget or evaluation sets ask.'
        f' Forget facts without a subject: {swapped["facts_without_subject"]}.')
  return document.Section('Training', (
      document.Plots(tuple(plots)) if plots else
      document.Text('No training steps are recorded.'), document.Text(text)))


def _series(record: Record, key: str, scale: float) -> list[svg.Series]:
  """A metric by step; a line a view where it depends on the view."""
  history = record['history']
  values = [
      (view, (step, value * scale)) for view, step, value in zip(
          history.get('view', []), history.get('step', []),
          history.get(key, [])) if value is not None]
  if not values:
    return []
  if key == 'moved' or not any(view for view, _ in values):
    return [svg.Series('', 'unlearned', [point for _, point in values])]
  names = ['fp', *record['config']['quant_schemes']]
  parts = [[point for view, point in values if view == i]
           for i in range(len(names))]
  return [
      svg.Series(name, svg.STYLES[i % len(svg.STYLES)], part)
      for i, (name, part) in enumerate(zip(names, parts)) if part]
