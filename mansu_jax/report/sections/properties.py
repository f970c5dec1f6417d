"""The four properties, as cards, and the verdict in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mansu_jax.report import document
from mansu_jax.report import words

Record = dict[str, Any]


class _Property(NamedTuple):
  """How a property reads."""

  title: str
  name: str  # Within a sentence.
  measure: str
  wanted: str
  meaning: str
  side: str  # Which bound decides: 'lower' or 'upper'.
  sign: bool  # A difference, printed with its sign.


_PROPERTIES = {
    'F': _Property(
        'meaningful forgetting', 'forgetting', 'phi',
        'passes when the whole interval is at or above',
        'How much of the base\'s lead over guessing is gone, on phrasings of'
        ' the forget facts that were not trained on: 1 is down to chance, 0'
        ' is nothing forgotten.', 'lower', False),
    'R': _Property(
        'retain preservation', 'retain preservation', 'accuracy drop',
        'passes when the upper bound is at or below',
        'Accuracy lost on retained facts in new phrasings and on facts that'
        ' no training saw; a negative drop is a gain.', 'upper', True),
    'Q': _Property(
        'quantization permanence', 'quantization permanence', 'gap',
        'passes when the upper bound is at or below',
        'What quantization brings back of the forgotten facts: accuracy'
        ' quantized less accuracy in full precision; + is recovery.',
        'upper', True),
    'S': _Property(
        'structural erasure', 'structural erasure', 'CAD',
        'passes when CAD on the circuit is above, and AS-NC off it below,'
        ' every one of their nulls',
        'Whether the circuit behind the facts has changed, and not only the'
        ' answer.', '', False),
}


def sentence(record: Record) -> str:
  """The verdict in one plain sentence."""
  by_state: dict[str, list[str]] = {}
  for letter, entry in record['properties'].items():
    by_state.setdefault(words.verdict(entry.get('passed')), []).append(
        _PROPERTIES[letter].name)
  verb = lambda names: 'is' if len(names) == 1 else 'are'
  parts = []
  if names := by_state.get('failed'):
    parts.append(f'{words.listing(names)} failed')
  if names := by_state.get('inconclusive'):
    parts.append(f'{words.listing(names)} {verb(names)} inconclusive')
  if names := by_state.get('passed'):
    rest = 'all four: ' if len(names) == len(record['properties']) else ''
    parts.append(f'{rest}{words.listing(names)} passed')
  if names := by_state.get(words.MISSING):
    parts.append(f'{words.listing(names)} {verb(names)} not measured')
  text = '; '.join(parts)
  return f'{text[:1].upper()}{text[1:]}.'


def headline(letter: str, entry: Record) -> str:
  """The value with its interval, short."""
  spec = _PROPERTIES[letter]
  if 'checks' in entry:
    checks = _checks(entry)
    good = sum(v is True for v in checks.values())
    return f'{good} of {len(checks)} checks hold'
  scheme = f' under {entry["scheme"]}' if entry.get('scheme') else ''
  return (f'{spec.measure} {words.estimate(entry, 3, spec.sign)}'
          f'{scheme if entry.get("value") is not None else ""}')


def bound(letter: str, entry: Record) -> str:
  """The value with the bound that decides; a failure's is its interval's."""
  spec = _PROPERTIES[letter]
  if (spec.side != 'upper' or entry.get('upper') is None
      or entry.get('passed') is False):
    return headline(letter, entry)
  scheme = f' under {entry["scheme"]}' if entry.get('scheme') else ''
  return (f'{spec.measure} {words.signed(entry["value"])}{scheme}, upper bound'
          f' {words.signed(entry["upper"])}')


def unmet_checks(entry: Record) -> list[str]:
  """The checks of S that do not hold, and those that are open, in words."""
  found = _checks(entry)
  return [f'{told}: {"; ".join(names)}' for told, names in (
      ('does not hold', [k for k, holds in found.items() if holds is False]),
      ('open', [k for k, holds in found.items() if holds == 'inconclusive']))
          if names]


def _checks(entry: Record) -> dict[str, bool | str]:
  """The checks of S, in words, at every precision."""
  named = lambda key: key.replace('_', ' ').replace(
      'as nc', 'AS-NC').replace('cad', 'CAD')
  out = {named(k): holds for k, holds in entry.get('checks', {}).items()}
  for precision, other in entry.get('by_precision', {}).items():
    out |= {f'{named(k)} under {precision}': holds
            for k, holds in other.get('checks', {}).items()}
  return out


def threshold(letter: str, entry: Record) -> str:
  """What would have passed."""
  bound = entry.get('threshold')
  tail = '' if bound is None or letter == 'S' else f' {bound:g}'
  return _PROPERTIES[letter].wanted + tail


def cards(record: Record) -> document.Cards:
  """One card a property."""
  makers: dict[str, Callable[..., list[str]]] = {
      'F': _forgetting_notes, 'Q': _scheme_notes, 'S': _check_notes}
  return document.Cards(tuple(
      document.Card(
          letter=letter, title=_PROPERTIES[letter].title,
          state=entry.get('passed', words.MISSING),
          headline=headline(letter, entry),
          threshold=threshold(letter, entry),
          meaning=_PROPERTIES[letter].meaning,
          notes=tuple(makers.get(letter, _precision_notes)(
              record, letter, entry) + _doubt(letter, entry)))
      for letter, entry in record['properties'].items()))


def _precision_notes(record: Record, letter: str, entry: Record) -> list[str]:
  """The same figure under each quantizer."""
  del record
  sign = _PROPERTIES[letter].sign
  return [f'{precision}: {words.estimate(found, 3, sign)}'
          for precision, found in entry.get('by_precision', {}).items()
          if precision != 'fp']


def _forgetting_notes(record: Record, letter: str, entry: Record) -> list[str]:
  """phi at each precision, the worst phrasing, where answers are avoided."""
  notes = _precision_notes(record, letter, entry)
  if worst := entry.get('worst_form'):
    accuracies = ', '.join(f'{words.number(value)} {precision}'
                           for precision, value in worst['accuracy'].items())
    notes.append(
        f'worst phrasing: {worst["form"]}, phi {words.estimate(worst, 3)},'
        f' accuracy {accuracies} ({words.count(worst["n"], "question")});'
        ' where even its interval is below the threshold, the property fails')
  below = [precision for precision, found
           in entry.get('by_precision', {}).items()
           if (found.get('lower') or 0) > 1]
  if below:
    notes.append(
        f'below chance ({words.listing(below)}): the right answer is avoided,'
        ' so part of it can be read from what is avoided; 1 is the aim, more is'
        ' not better')
  return notes


def _scheme_notes(record: Record, letter: str, entry: Record) -> list[str]:
  """The gap of every quantizer; the worst one decides."""
  del letter, entry
  notes = []
  for scheme, gap in record['ptq_gap'].items():
    base = record['ptq_gap_base'].get(scheme, {}).get('value')
    notes.append(f'{scheme}: {words.estimate(gap, 3, True)}; the base\'s own'
                 f' gap is {words.signed(base)}')
  return notes


def _check_notes(record: Record, letter: str, entry: Record) -> list[str]:
  """CAD, AS-NC, and the checks that do not hold."""
  del letter
  notes = []
  for key, name in (('cad', 'CAD'), ('as_nc', 'AS-NC')):
    notes.append(f'{name}: {words.estimate(record.get(key))}')
    if key == 'cad' and entry.get('threshold') is not None:
      notes[-1] += ('; the highest 95 % level of a null is'
                    f' {words.number(entry["threshold"])}')
  return notes + unmet_checks(entry)


def _doubt(letter: str, entry: Record) -> list[str]:
  """Why a property is inconclusive, and what the data could have shown."""
  notes = []
  if entry.get('passed') == 'inconclusive':
    notes.append('inconclusive: ' + (entry.get('reason') or _reason(entry)))
  smallest = smallest_effect(letter, entry)
  if smallest is not None:
    notes.append(
        'smallest effect that these data could have shown:'
        f' {words.number(smallest)}'
        + (f' ({words.count(entry["n"], "question")} on'
           f' {words.count(entry["facts"], "fact")})'
           if entry.get('facts') else ''))
  return notes


def _reason(entry: Record) -> str:
  if entry.get('value') is None:
    return 'it is not defined on these data'
  return ('the interval holds values on both sides of the threshold'
          f' {entry["threshold"]:g}; more questions on more facts would'
          ' narrow it')


def smallest_effect(letter: str, entry: Record) -> float | None:
  """The recorded one, or the reach of the bound that decides."""
  if entry.get('smallest_detectable') is not None:
    return entry['smallest_detectable']
  side = _PROPERTIES[letter].side
  bound = entry.get(side) if side else None
  if bound is None or entry.get('value') is None:
    return None
  return abs(entry['value'] - bound)
