"""Accuracy of the base and the unlearned model by split."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg

Record = dict[str, Any]

MODELS = ('base', 'unlearned')


def precisions(record: Record) -> list[str]:
  """`fp`, then the quantizers in the order of --quant_schemes."""
  return ['fp', *record['config']['quant_schemes']]


def legend(record: Record) -> list[svg.Key]:
  """Colours stand for models, hollow marks for quantized ones."""
  quantized = '/'.join(precisions(record)[1:])
  return [
      svg.Key('base, fp', 'base'), svg.Key(f'base, {quantized}', 'base', True),
      svg.Key('unlearned, fp', 'unlearned'),
      svg.Key(f'unlearned, {quantized}', 'unlearned', True)]


def chance(record: Record) -> float | None:
  """Accuracy of a guessing model on the forget questions; None if unknown."""
  choice = record.get('forgetting', {}).get('choice')
  return choice and choice['ignorance']['unlearned'].get('fp')


def section(record: Record) -> document.Section:
  """Accuracy of all splits, models and precisions."""
  blocks: list[document.Block] = [document.Text(
      'Accuracy on multiple-choice questions: the model answers with the choice'
      ' of the highest summed log-probability. Forgetting lowers the forget'
      ' splits to the accuracy of an ignorant model; the retain splits should'
      ' not change.')]
  missing = record['data'].get('missing_splits') or [
      s for s in words.REQUIRED_SPLITS if s not in record['accuracy']]
  if missing:
    blocks.append(document.Text(
        f'The data have no questions for {words.listing(missing)}, so nothing'
        ' was measured there. A property without any questions is'
        ' inconclusive.'))
  if record['accuracy']:
    blocks += [_plot(record), _table(record)]
  return document.Section('Accuracy', tuple(blocks))


def _entries(
    record: Record, split: str) -> list[tuple[str, str, Record]]:
  """(model, precision, entry) of a split."""
  by_model = record['accuracy'][split]
  return [(model, precision, by_model[model].get(precision) or {})
          for model in MODELS for precision in precisions(record)]


def _plot(record: Record) -> document.Plots:
  rows = [svg.Row(split, [
      svg.Dot(entry.get('value'), entry.get('interval'), model,
              precision != 'fp')
      for model, precision, entry in _entries(record, split)])
          for split in record['accuracy']]
  level = chance(record)
  rules = [] if level is None else [svg.Rule(level, f'ignorant {level:.2f}')]
  chart = svg.dot_chart(
      'Accuracy by split, with 95 % intervals', rows,
      label='accuracy (share of questions answered correctly)',
      legend=legend(record), rules=rules, limits=(0.0, 1.0))
  caption = (
      'Accuracy by split with 95 % intervals. Colour: model. Hollow marks:'
      ' quantized.' + ' Dashed line: an ignorant model on the forget questions.'
      * bool(rules))
  return document.Plots((document.Plot('accuracy', chart, caption),))


def _table(record: Record) -> document.Table:
  rows = tuple(
      (words.SPLITS.get(split, split), model, precision,
       words.number(entry.get('value')), words.interval(entry.get('interval')),
       words.number(entry.get('acc_norm')), str(entry.get('n', words.MISSING)))
      for split in record['accuracy']
      for model, precision, entry in _entries(record, split))
  return document.Table(
      ('split', 'model', 'precision', 'accuracy', '95 % interval',
       'acc_norm', 'questions'), rows, labels=3,
      caption='Accuracy: share of the split\'s questions answered correctly'
      ' (0 to 1). fp is full precision; the other precisions are quantizers.'
      ' Bootstrap intervals resample facts, because several questions ask for'
      ' the same fact. acc_norm: the same accuracy with each choice\'s'
      ' log-probability divided by its number of characters.')
