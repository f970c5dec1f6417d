"""The PTQ gap: accuracy that quantization adds on forget questions."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg

Record = dict[str, Any]

_GAPS = (
    ('ptq_gap', 'PTQ gap', 'unlearned'),
    ('ptq_gap_base', 'PTQ gap of the base', 'base'),
    ('ptq_gap_adjusted', 'base-adjusted gap', 'null'))


def section(record: Record) -> document.Section:
  """PTQ gaps of the unlearned model and the base, and their difference."""
  title = 'Recovery under quantization (PTQ gap)'
  if not record['ptq_gap']:
    return document.Section(title, (document.Text(
        'Not measured: the forget set has no near or far questions.'),))
  return document.Section(title, (
      document.Text(
          'The PTQ gap is the accuracy of the quantized model minus that of the'
          ' full-precision model, on forget_paraphrase and forget_far together.'
          ' A positive gap means that quantization recovers forgotten facts.'
          ' Property Q judges the same as a share of the base\'s knowledge'
          ' above that of an ignorant model, because the base loses accuracy by'
          ' rounding too.'),
      document.Plots((document.Plot(
          'ptq_gap', _gap_chart(record),
          'PTQ gaps with 95 % intervals, by quantizer. Right of 0: the'
          ' quantized model answers more forget questions than the'
          ' full-precision model.'),)),
      _gap_table(record), _gap_tests(record)))


def _gap_table(record: Record) -> document.Table:
  rows = tuple(
      (scheme, *(words.estimate(record[key].get(scheme), 3, True)
                 for key, _, _ in _GAPS)) for scheme in record['ptq_gap'])
  return document.Table(
      ('quantizer', *(name for _, name, _ in _GAPS)), rows,
      caption='Differences of accuracy [95 % interval]. PTQ gap: of the'
      ' unlearned model. PTQ gap of the base: the same difference for the base'
      ' model. Base-adjusted gap: PTQ gap minus PTQ gap of the base.')


def _gap_tests(record: Record) -> document.Table:
  rows = tuple(
      (scheme, words.signed(gap.get('upper')),
       words.number(gap.get('smallest_detectable')),
       words.number(gap.get('discordant')),
       words.significant(gap.get('mcnemar_p')),
       str(gap.get('n', words.MISSING)))
      for scheme, gap in record['ptq_gap'].items())
  return document.Table(
      ('quantizer', 'upper bound of the gap', 'smallest detectable gap',
       'discordant', 'McNemar p', 'questions'), rows,
      caption='How certain the PTQ gap is. Upper bound: one-sided 95 % bound.'
      ' Smallest detectable gap: the smallest recovery that these questions can'
      ' show. Discordant: share of questions that only one of the two'
      ' precisions answers correctly. McNemar p: exact two-sided test; unlike'
      ' the intervals, it treats questions as independent.')


def _gap_chart(record: Record) -> str:
  rows = []
  for scheme in record['ptq_gap']:
    entries = [record[key].get(scheme) or {} for key, _, _ in _GAPS]
    rows.append(svg.Row(scheme, [
        svg.Dot(entry.get('value'), entry.get('interval'), style)
        for entry, (_, _, style) in zip(entries, _GAPS)]))
  return svg.dot_chart(
      'PTQ gap: quantized minus full-precision accuracy', rows,
      label='difference of accuracy (positive: recovery)',
      legend=[svg.Key(name, style) for _, name, style in _GAPS],
      rules=[svg.Rule(0.0, 'no gap')])
