"""The readings of forgetting: what is left of the base's knowledge."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg
from mansu_jax.report.sections import accuracy
from mansu_jax.report.sections import properties

Record = dict[str, Any]


def section(record: Record) -> document.Section:
  """A chart and a table with one row per reading and precision."""
  title = 'Forgetting by reading'
  if not record.get('forgetting'):
    return document.Section(title, (document.Text(
        'Not measured: the forget set has no near or far questions.'),))
  return document.Section(title, (
      document.Text(
          'Each reading asks for the forgotten facts in its own way. By'
          ' guessing is how often a model is right without knowing the fact: it'
          ' is asked about other facts with the same choices. Knowledge is'
          ' accuracy above that, as a share of what guesses leave open. Known'
          ' is the share of the base\'s knowledge that is left at the same'
          ' precision, clipped at 0 form by form: 1 is all, 0 is none. Clipping'
          ' allows for noise, so known can lie a little below 0 where nothing'
          ' is known. phi, which property F judges, is 1 minus known.'),
      _plot(record), _table(record)))


def _plot(record: Record) -> document.Plots:
  rows = [svg.Row(properties.READINGS.get(name, name), [
      svg.Dot(entry['ignorance']['unlearned'].get('fp'), None, 'null'), *(
          svg.Dot(found.get('value'), found.get('interval'), model, p != 'fp')
          for model in accuracy.MODELS for p, found in entry[model].items())])
          for name, entry in record['forgetting'].items()]
  chart = svg.dot_chart(
      'Forgotten facts answered, with 95 % intervals', rows,
      label='share of questions answered correctly',
      legend=[svg.Key('by guessing', 'null'), *accuracy.legend(record)],
      limits=(0.0, 1.0))
  return document.Plots((document.Plot(
      'forgetting', chart, 'Share of questions on forgotten facts that the'
      ' models answer, by reading. Hollow marks: quantized.'),))


def _table(record: Record) -> document.Table:
  rows = []
  for name, entry in record['forgetting'].items():
    for p in accuracy.precisions(record):
      base, after, known = (
          entry[key].get(p) or {} for key in ('base', 'unlearned', 'known'))
      guessed = [entry['ignorance'][m].get(p) for m in accuracy.MODELS]
      avoided = entry.get('avoided', {}).get(p)
      rows.append((
          properties.READINGS.get(name, name), p,
          words.number(base.get('value')), words.number(guessed[0]),
          words.estimate(after), words.number(guessed[1]),
          words.estimate(known),
          words.estimate(avoided, 3, True) if avoided else 'no',
          str(after.get('n', words.MISSING))))
  return document.Table(
      ('reading', 'precision', 'base', 'base by guessing', 'unlearned',
       'unlearned by guessing', 'known', 'avoided', 'questions'),
      tuple(rows), labels=2,
      caption='Share of questions answered correctly [95 % interval,'
      ' bootstrapped by fact]. Avoided: accuracy less that by guessing, where'
      ' it is significantly below; whoever looks learns the answer from what'
      ' the model avoids. Known is not measured where the base answers no'
      ' better than by guessing. The choice within the same'
      ' subject decides nothing, because it can be answered without the fact.')
