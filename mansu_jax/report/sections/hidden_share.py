"""The hidden share: answers that the edited model holds and does not give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg

Record = dict[str, Any]

_GATES = {
    'sharp_mover': 'one layer moves the answer (lead removed before it)',
    'another_fact': 'states of other facts before that block',
    'noise': 'random change of the edit\'s size',
    'base_quantized': 'quantized base',
    'retained': 'retained facts'}
_HOLDS = {True: 'yes', False: 'no'}


def blocks(record: Record) -> Iterator[document.Block]:
  """The hidden share with its gates; nothing for records without it."""
  found = record.get('structure')
  if not found:
    return
  if 'hidden_share' not in found:
    yield document.Text(
        f'The hidden share was not measured: {found["reason"]}.')
    return
  layer, answered = found['mover_layer'], found['answered']
  guessed = words.number(answered.get('guessed'))
  yield document.Text(
      'The hidden share is what the unlearned model answers if block'
      f' {layer} (counted from 0) is the base\'s and attends as in the base,'
      ' less what it answers itself, as shares of what the base knows. That'
      ' block moves the answer from the subject\'s tokens to the last token.'
      ' The answer is read at the end, and also after that block and after each'
      ' one above it, since a later block may suppress it; the reading with the'
      ' highest lower bound counts. Above 0, the edit has hidden answers'
      ' instead of erasing them. Property S passes only if little is left,'
      ' whether the model answers itself or not: at the end, and in the mean of'
      ' the early readings.')
  yield document.Table(
      ('precision', 'hidden share [95 % interval]', 'read',
       'left [95 % interval]', 'unlearned itself', 'at the end', 'early, mean',
       'attention alone', 'the base, with its values',
       'the base, with its last-token state'),
      tuple(_rows(found['hidden_share'])), caption=(
          'Shares of what the base knows: its lead over guessing, divided by'
          ' what guesses leave open. On'
          f' {words.count(found["questions"], "forget question")} about'
          f' {words.count(found["facts"], "fact")}: 1 is the base, which'
          f' answers {words.number(answered["base"])} of the questions. 0 is'
          ' guessing: what the same reading answers in prompts about other'
          f' facts, for the base {guessed}. Below 0, right answers are avoided.'
          ' The last three columns describe; in the last two, the base\'s own'
          ' states and blocks add what the unlearned model may lack.'
          f'{_joint(found["hidden_share"])}'))
  yield document.Table(
      ('check of the measure', 'share [95 % interval]', 'wanted', 'holds'),
      tuple(_gates(found['gates'])), caption=(
          'Checks without which the hidden share decides nothing. Harmless'
          ' changes must leave the answers and hide none, and states of other'
          ' facts must remove them.'))
  yield document.Plots((_plot(found),))


def _joint(found: Record) -> str:
  """The intervals that decide, a sentence."""
  joint = [f'{precision} {words.interval(entry["interval_of_all"])}'
           for precision, entry in found.items() if 'interval_of_all' in entry]
  return (' The intervals that hold for all precisions and readings'
          f' together, which decide property S: {", ".join(joint)}.'
          ) if joint else ''


def _rows(found: Record) -> Iterator[tuple[str, ...]]:
  for precision, entry in found.items():
    yield (precision, words.estimate(entry),
           _read(entry.get('reading')), words.estimate(entry.get('left')),
           *(words.number(entry.get(k)) for k in (
               'own', 'block', 'early', 'looks', 'values', 'last_state')))


def _read(reading: str | None) -> str:
  """Where the answer is read."""
  if reading is None:
    return words.MISSING
  _, _, layer = reading.partition('after_')
  return f'after block {layer}' if layer else 'at the end'


def _gates(gates: Record) -> Iterator[tuple[str, ...]]:
  for name, gate in gates.items():
    sign = 'at most' if name == 'another_fact' else 'at least'
    value = (words.number(gate['value']) if name == 'sharp_mover'
             else words.estimate(gate))
    wanted = f'{sign} {gate["level"]:g}'
    if 'next_layer' in gate:
      value += f', then {words.number(gate["next_layer"])}'
      wanted += f', then at most {gate["next_level"]:g}'
    if 'hidden' in gate:
      value += f', hidden {words.estimate(gate["hidden"])}'
      wanted += f', hidden not above {gate["hidden_level"]:g}'
    yield (_GATES.get(name, name), value, wanted, _HOLDS.get(
        gate['holds'], f'unknown: {gate.get("reason", words.MISSING)}'))


def _plot(found: Record) -> document.Plot:
  series = [svg.Series(
      'base', 'base', list(enumerate(found['by_layer'])))]
  return document.Plot('mover_layer', svg.line_chart(
      'Lead that another fact\'s states remove', series,
      x_label='block before which the states are replaced',
      y_label='share of the lead', width=svg.WIDE),
                       'Share of the base\'s lead that is removed when the'
                       ' states from the subject to the second-last token are'
                       ' replaced by those of another fact, in training'
                       ' phrasings. It falls after the block that moves the'
                       ' answer to the last token.')
