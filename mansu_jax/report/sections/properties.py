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
  side: str  # The bound that decides: 'lower' or 'upper'; '' for checks.
  sign: bool  # Whether the measure is a difference, printed with its sign.


_PROPERTIES = {
    'F': _Property(
        'meaningful forgetting', 'forgetting', 'phi',
        'passes if the whole 95 % interval is at or above',
        'phi is the share of the base\'s accuracy above chance that is gone, on'
        ' phrasings of the forget facts that training never saw: 1 is chance, 0'
        ' is nothing forgotten.', 'lower', False),
    'R': _Property(
        'retain preservation', 'retain preservation', 'accuracy drop',
        'passes if the one-sided upper 95 % bound is at or below',
        'Accuracy lost on retain facts in new phrasings and on facts that'
        ' training never saw; a negative drop is a gain.', 'upper', True),
    'Q': _Property(
        'quantization permanence', 'quantization permanence', 'PTQ gap',
        'passes if the one-sided upper 95 % bound is at or below',
        'Accuracy on forget questions when quantized minus that in full'
        ' precision; a positive gap means that quantization recovers forgotten'
        ' facts.', 'upper', True),
    'S': _Property(
        'structural erasure', 'structural erasure', 'CAD',
        'passes if CAD is above, and AS-NC within, all of their nulls at every'
        ' precision',
        'Whether attribution on the circuit fades more than under every null'
        ' model.', '', False),
}
_NULLS = {
    'prompt_halves': 'prompt halves', 'base_quantized': 'the quantized base',
    'random_circuits': 'random circuits',
    'suppression': 'the suppression control'}
_CHECKS = {'cad_above_': 'CAD above ', 'as_nc_below_': 'AS-NC below '}


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
  """The properties as cards."""
  makers: dict[str, Callable[..., list[str]]] = {
      'F': _forgetting_notes, 'Q': _quantizer_notes, 'S': _check_notes}
  return document.Section('Four properties', (document.Cards(tuple(
      document.Card(
          letter=letter, title=_PROPERTIES[letter].title,
          state=entry.get('passed', words.MISSING),
          headline=headline(letter, entry),
          threshold=_threshold(letter, entry),
          meaning=_PROPERTIES[letter].meaning,
          notes=(*_why(letter, entry),
                 *makers.get(letter, _precision_notes)(record, letter, entry),
                 *_detectable(letter, entry)))
      for letter, entry in record['properties'].items())),))


def headline(letter: str, entry: Record) -> str:
  """The value with its interval, or how many checks of S hold."""
  spec = _PROPERTIES[letter]
  if 'checks' in entry:
    checks = _checks(entry)
    passed = sum(v is True for v in checks.values())
    return f'{passed} of {len(checks)} checks passed'
  if letter == 'S':
    return 'not judged'
  scheme = f' under {entry["scheme"]}' if entry.get('scheme') else ''
  return (f'{spec.measure} {words.estimate(entry, 3, spec.sign)}'
          f'{scheme if entry.get("value") is not None else ""}')


def bound(letter: str, entry: Record) -> str:
  """The value with the bound that decides: the interval for a failure."""
  spec = _PROPERTIES[letter]
  if (spec.side != 'upper' or entry.get('upper') is None
      or entry.get('passed') is False):
    return headline(letter, entry)
  scheme = f' under {entry["scheme"]}' if entry.get('scheme') else ''
  return (f'{spec.measure} {words.signed(entry["value"])}{scheme}, upper bound'
          f' {words.signed(entry["upper"])}')


def unmet_checks(entry: Record) -> list[str]:
  """The failed and the inconclusive checks of S, in words."""
  found = _checks(entry)
  by_state = (
      ('failed', [k for k, state in found.items() if state is False]),
      ('inconclusive',
       [k for k, state in found.items() if state == 'inconclusive']))
  return [f'{state} checks: {"; ".join(names)}'
          for state, names in by_state if names]


def _checks(entry: Record) -> dict[str, bool | str]:
  """The checks of S by name, at every precision."""
  out = {_check_name(k): state for k, state in entry.get('checks', {}).items()}
  for precision, other in entry.get('by_precision', {}).items():
    out |= {f'{_check_name(k)} under {precision}': state
            for k, state in other.get('checks', {}).items()}
  return out


def _check_name(key: str) -> str:
  """`CAD above random circuits` for `cad_above_random_circuits`."""
  for prefix, text in _CHECKS.items():
    if key.startswith(prefix):
      null = key.removeprefix(prefix)
      return text + _NULLS.get(null, null.replace('_', ' '))
  return key.replace('_', ' ')


def _threshold(letter: str, entry: Record) -> str:
  """The condition under which the property passes."""
  threshold = entry.get('threshold')
  value = '' if threshold is None or letter == 'S' else f' {threshold:g}'
  return _PROPERTIES[letter].passes + value


def _why(letter: str, entry: Record) -> list[str]:
  """The verdict with its reason."""
  state = entry.get('passed')
  if letter == 'S' and (unmet := unmet_checks(entry)):
    return unmet
  makers = {True: _why_passed, False: _why_failed,
            'inconclusive': _why_inconclusive}
  return [f'{words.VERDICTS[state]}: {makers[state](letter, entry)}'
          ] if state in makers else []


def _why_passed(letter: str, entry: Record) -> str:
  if letter == 'S':
    return 'every check passed at every precision'
  limit = f'{entry["threshold"]:g}'
  if letter == 'F':
    return f'the whole 95 % interval is at or above {limit}'
  return (f'the upper bound {words.signed(entry.get("upper"))} is at or below'
          f' {limit}')


def _why_failed(letter: str, entry: Record) -> str:
  if letter == 'S':
    return entry.get('reason') or 'at least one check failed'
  limit, (_, high) = entry['threshold'], entry['interval']
  if letter == 'R':
    return f'the whole 95 % interval is above {limit:g}'
  if letter == 'Q':
    return ('the whole 95 % interval, corrected for the number of quantizers,'
            f' is above {limit:g}')
  if high is not None and high < limit:
    return f'the whole 95 % interval is below {limit:g}'
  worst = entry.get('worst_form') or {}
  return (f'the whole interval of the phrasing {worst.get("form")} is below'
          f' {limit:g}')


def _why_inconclusive(letter: str, entry: Record) -> str:
  if reason := entry.get('reason'):
    return reason
  if letter == 'S' or entry.get('value') is None:
    return 'the measure is not defined on these data'
  return (f'the interval includes the threshold {entry["threshold"]:g}; more'
          ' questions on more facts would narrow it')


def _precision_notes(record: Record, letter: str, entry: Record) -> list[str]:
  """The measure under each quantizer."""
  del record
  sign = _PROPERTIES[letter].sign
  return [f'{precision}: {words.estimate(found, 3, sign)}'
          for precision, found in entry.get('by_precision', {}).items()
          if precision != 'fp']


def _forgetting_notes(record: Record, letter: str, entry: Record) -> list[str]:
  """phi by precision, the worst phrasing, and accuracy below chance."""
  notes = _precision_notes(record, letter, entry)
  if worst := entry.get('worst_form'):
    accuracies = ', '.join(f'{words.number(value)} {precision}'
                           for precision, value in worst['accuracy'].items())
    notes.append(
        f'worst phrasing: {worst["form"]}, phi {words.estimate(worst, 3)},'
        f' accuracy {accuracies} ({words.count(worst["n"], "question")});'
        ' the property fails if this whole interval, corrected for the number'
        ' of phrasings, is below the threshold')
  below = [precision for precision, found
           in entry.get('by_precision', {}).items()
           if (found.get('lower') or 0) > 1]
  if below:
    notes.append(
        f'below chance ({words.listing(below)}): the model avoids the right'
        ' answer, which reveals part of it; the aim is 1, not more')
  return notes


def _quantizer_notes(record: Record, letter: str, entry: Record) -> list[str]:
  """The gap of every quantizer; the worst one decides."""
  del letter, entry
  notes = []
  for scheme, gap in record['ptq_gap'].items():
    base = record['ptq_gap_base'].get(scheme, {}).get('value')
    notes.append(f'{scheme}: {words.estimate(gap, 3, True)}; gap of the base'
                 f' {words.signed(base)}')
  return notes


def _check_notes(record: Record, letter: str, entry: Record) -> list[str]:
  """CAD and AS-NC with their intervals."""
  del letter
  notes = []
  for key, name in (('cad', 'CAD'), ('as_nc', 'AS-NC')):
    notes.append(f'{name}: {words.estimate(record.get(key))}')
    if key == 'cad' and entry.get('threshold') is not None:
      notes[-1] += ('; highest 95 % level of a null'
                    f' {words.number(entry["threshold"])}')
  return notes


def _detectable(letter: str, entry: Record) -> list[str]:
  """The smallest effect that the data can show."""
  smallest = _smallest_effect(letter, entry)
  if smallest is None:
    return []
  data = (f' ({words.count(entry["n"], "question")} on'
          f' {words.count(entry["facts"], "fact")})'
          if entry.get('facts') else '')
  return [f'smallest detectable effect: {words.number(smallest)}{data}']


def _smallest_effect(letter: str, entry: Record) -> float | None:
  """The recorded one, or the distance to the bound that decides."""
  if entry.get('smallest_detectable') is not None:
    return entry['smallest_detectable']
  side = _PROPERTIES[letter].side
  limit = entry.get(side) if side else None
  if limit is None or entry.get('value') is None:
    return None
  return abs(entry['value'] - limit)
