"""The four properties as cards, and the verdict in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mansu_jax.report import document
from mansu_jax.report import words

Record = dict[str, Any]


class _Property(NamedTuple):
  """The words for a property."""

  title: str
  name: str  # Within a sentence.
  measure: str
  passes: str
  meaning: str
  side: str  # The bound that decides: 'lower' or 'upper'; '' for none.
  sign: bool  # Whether the measure is a difference, printed with its sign.


_PROPERTIES = {
    'F': _Property(
        'meaningful forgetting', 'forgetting', 'phi',
        'passes if, in every reading that decides and at every precision, the'
        ' one-sided lower 95 % bound is at or above',
        'phi is the share of the base\'s knowledge that is gone: 1 is the'
        ' accuracy of a model that is ignorant of the facts, 0 is nothing'
        ' forgotten. The worst reading and precision are shown.', 'lower',
        False),
    'R': _Property(
        'retain preservation', 'retain preservation', 'accuracy drop',
        'passes if, at every precision, the one-sided upper 95 % bound is at or'
        ' below',
        'Accuracy lost on facts that training never saw, against the base at'
        ' the same precision; a negative drop is a gain.', 'upper', True),
    'Q': _Property(
        'quantization permanence', 'quantization permanence',
        'knowledge brought back',
        'passes if, under every quantizer, the one-sided upper 95 % bound is at'
        ' or below',
        'Share of the base\'s knowledge that is left in the quantized model,'
        ' less that in full precision, in the choice readings together;'
        ' positive means that rounding brings knowledge back. It also fails if'
        ' a single reading shows that.', 'upper', True),
    'S': _Property(
        'structural erasure', 'structural erasure', 'hidden share',
        'fails if an attack brings back more than guessing, or if the whole'
        ' interval lies above',
        'Share of the base\'s knowledge that the unlearned model answers if one'
        ' block is the base\'s, beyond what it answers itself. It passes if the'
        ' model holds little and thorough attacks bring little back.', '',
        False),
}
READINGS = {
    'choice': 'choice of four, trained choices',
    'choice_unseen': 'choice of four, unseen choices',
    'generation': 'generated answer',
    'generation_few_shot': 'generated after solved examples',
    'reverse': 'reverse question',
    'choice_same_subject': 'choice of four, same subject',
}
SHOWN_ONLY = 'choice_same_subject'  # The reading that never decides.
_SPLITS = {'retain_heldout': 'held-out facts', 'retain': 'retained facts'}


def decides(record: Record, reading: str) -> bool:
  """Whether F judges a reading, or would if the base led in it."""
  # Earlier records judge each reading.
  trained = record['data'].get('trained_readings', ('reverse',))
  return reading != SHOWN_ONLY and (reading != 'reverse' or reading in trained)


def untrained(record: Record) -> str:
  """What reverse questions find where they decide nothing; else ''."""
  found = record.get('forgetting', {}).get('reverse')
  if not found or decides(record, 'reverse'):
    return ''
  known = ', '.join(
      f'{words.number(entry["value"])} ({p})'
      for p, entry in found['known'].items() if entry['value'] is not None)
  return ('Training asks no reverse questions, so they decide nothing; known in'
          f' them: {known or words.MISSING}')


def sentence(record: Record) -> str:
  """The verdict in one sentence."""
  by_state: dict[str, list[str]] = {}
  for letter, entry in record['properties'].items():
    by_state.setdefault(words.verdict(entry.get('passed')), []).append(
        _PROPERTIES[letter].name)
  if list(by_state) == ['passed']:
    return f'All four properties passed: {words.listing(by_state["passed"])}.'
  parts = []
  for state, verb in (('failed', ''), ('inconclusive', ('is ', 'are ')),
                      ('passed', ''), (words.MISSING, ('was ', 'were '))):
    if names := by_state.get(state):
      auxiliary = verb and verb[len(names) > 1]
      parts.append(f'{words.listing(names)} {auxiliary}{state}')
  text = '; '.join(parts)
  return f'{text[:1].upper()}{text[1:]}.'


def section(record: Record) -> document.Section:
  """The properties as cards; remarks on other rules and untrained questions."""
  entries = record['properties']
  remarks = dict.fromkeys(
      entry['former']['remark'] for entry in entries.values()
      if 'former' in entry)
  return document.Section('Four properties', (
      *map(document.Text, [*remarks, *filter(None, [untrained(record)])]),
      document.Cards(tuple(_card(*item) for item in entries.items()))))


def _card(letter: str, entry: Record) -> document.Card:
  makers: dict[str, Callable[[Record], list[str]]] = {
      'F': _forgetting_notes, 'R': _retain_notes, 'Q': _quantizer_notes,
      'S': _structure_notes}
  former = entry.get('former', {})
  return document.Card(
      letter=letter, title=_PROPERTIES[letter].title,
      state=entry.get('passed', words.MISSING),
      headline=headline(letter, entry), threshold=_threshold(letter, entry),
      meaning=former.get('meaning', _PROPERTIES[letter].meaning),
      notes=(*_why(letter, entry), *makers[letter](entry),
             *_detectable(letter, entry)))


def headline(letter: str, entry: Record) -> str:
  """The value with its interval, and where it was measured."""
  if entry.get('value') is None:
    return 'not judged'
  return (f'{_measure(letter, entry)}'
          f' {words.estimate(entry, 3, _PROPERTIES[letter].sign)}'
          f'{where(entry)}')


def _measure(letter: str, entry: Record) -> str:
  return entry.get('former', {}).get('measure', _PROPERTIES[letter].measure)


def where(entry: Record) -> str:
  """The reading and the precision of a property's value."""
  reading = READINGS.get(entry.get('reading'), '')
  precision = entry.get('precision') or entry.get('scheme')
  return (f', {reading}' if reading else '') + (
      f' ({precision})' if precision else '')


def _threshold(letter: str, entry: Record) -> str:
  """The condition under which the property passes or fails."""
  threshold = entry.get('threshold')
  rule = entry.get('former', {}).get('rule', _PROPERTIES[letter].passes)
  return rule + ('' if threshold is None else f' {threshold:g}')


def _why(letter: str, entry: Record) -> list[str]:
  """The verdict with its reasons."""
  state = entry.get('passed')
  if state not in words.VERDICTS:
    return []
  reasons = entry.get('reasons') or [entry.get('reason') or _rule(
      letter, state, entry)]
  return [f'{words.VERDICTS[state]}: {"; ".join(reasons)}']


def _rule(letter: str, state: bool | str, entry: Record) -> str:
  """Which bound decided."""
  limit = f'{entry["threshold"]:g}' if entry.get('threshold') else '0'
  side = _PROPERTIES[letter].side
  right, wrong = (('at or above', 'below') if side == 'lower' else
                  ('at or below', 'above'))
  if state is True:
    return f'every {side} bound is {right} {limit}'
  if state is False:
    return (f'a whole interval is {wrong} {limit}, corrected for the number of'
            ' estimates that are judged together')
  if entry.get('value') is None:
    return 'the measure is not defined on these data'
  return (f'an interval includes {limit}; more questions on more facts would'
          ' narrow it')


def _forgetting_notes(entry: Record) -> list[str]:
  """phi by reading and precision."""
  notes = []
  for name, found in entry.get('by_reading', {}).items():
    values = ', '.join(f'{p} {words.estimate(e)}' for p, e in found.items())
    notes.append(f'{READINGS.get(name, name)}: {values}')
  return notes


def _retain_notes(entry: Record) -> list[str]:
  """The drop at each precision, where it decides and on retained facts."""
  split = entry.get('split')
  shown = [(_SPLITS.get(split, 'retained and held-out facts'),
            entry.get('by_precision', {}))]
  if split != 'retain':  # It is the same otherwise.
    shown.append((_SPLITS['retain'], entry.get('trained', {})))
  return [f'{label}, {precision}: {words.estimate(found, 3, True)}'
          for label, drops in shown for precision, found in drops.items()]


def _quantizer_notes(entry: Record) -> list[str]:
  """What each quantizer brings back, in all and in single readings."""
  notes = []
  for scheme, found in entry.get('by_scheme', {}).items():
    notes.append(f'{scheme}: {words.estimate(found, 3, True)}')
    if single := found.get('by_reading'):
      values = '; '.join(
          f'{READINGS.get(name, name)} {words.estimate(one, 3, True)}'
          for name, one in single.items())
      notes.append(f'{scheme} by reading, with intervals that hold for all of'
                   f' them together: {values}')
  return notes


def _structure_notes(entry: Record) -> list[str]:
  """The hidden share at each precision."""
  return [f'{precision}: {words.estimate(found)}'
          for precision, found in entry.get('by_precision', {}).items()]


def _detectable(letter: str, entry: Record) -> list[str]:
  """The smallest effect that the data can show."""
  side = _PROPERTIES[letter].side
  limit = entry.get(side) if side else None
  if limit is None or entry.get('value') is None:
    return []
  data = (f' ({words.count(entry["n"], "question")} on'
          f' {words.count(entry["facts"], "fact")})'
          if entry.get('facts') else '')
  return ['smallest detectable effect:'
          f' {words.number(abs(entry["value"] - limit))}{data}']
