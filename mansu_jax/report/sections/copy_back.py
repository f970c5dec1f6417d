"""Copy-back: which part of the edit brings the answers back when undone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words

Record = dict[str, Any]

_SIMILAR = 0.02  # Largest difference between similar shares of moved weights.
_PARTS = {
    'circuit': 'the circuit', 'rest': 'everything outside the circuit',
    'random': 'a random circuit',
    'best_half': 'the half of the circuit with the highest scores',
    'random_half': 'a random half of the circuit'}


def blocks(record: Record) -> Iterator[document.Block]:
  """Recovery by part; nothing for records without it."""
  found = record.get('copy_back')
  if not found:
    return
  yield document.Text(
      'Copy-back restores the base\'s weights on one part of the model and'
      ' measures the recovery: the share of the forgotten answers that come'
      ' back. ' + (
          'The edit lies within the circuit. Restoring the circuit gives the'
          ' base, and there is nothing to restore outside it.'
          if found['confined'] else
          'If the circuit holds the erased knowledge, restoring the circuit'
          ' brings the answers back and restoring the rest does not.'))
  if found.get('best_half_less_random'):
    yield document.Text(_halves(found))
  if rows := tuple(_rows(found)):
    yield document.Table(
        ('precision', 'restored part', 'share answered',
         'recovery [95 % interval]'), rows, labels=2,
        caption='Forget questions that the model answers after the base\'s'
        ' weights were restored on one part (share of questions), and the'
        ' recovery: 0 is the unlearned model, 1 is the base.')


def _halves(found: Record) -> str:
  """Recovery of the best half minus that of random halves."""
  differences = '; '.join(
      f'{precision} {_recovery(less, True)}' + (
          f' ({less["as_much"]} random halves recover at least as much)'
          if 'as_much' in less else '')
      for precision, less in found['best_half_less_random'].items())
  similar, moved = _moved(found)
  return (
      'Recovery from the half of the circuit with the highest attribution'
      ' scores, minus the mean recovery from random halves with the same number'
      f' of nodes in each layer: {differences}.{moved} A difference above 0'
      ' means that the forgetting rests more on the nodes with high'
      f' scores{"" if similar else ", or on more changes in that half"}; below'
      ' 0, less.')


def _moved(found: Record) -> tuple[bool, str]:
  """Whether the halves hold similar shares of moved weights, and a sentence."""
  moved = found.get('moved')
  if not moved:  # Older records.
    return False, ''
  best, *others = moved.values()
  similar = abs(best - sum(others) / len(others)) < _SIMILAR
  return similar, (
      f' That half holds {words.percent(best)} of the circuit\'s moved weights;'
      ' the random halves, drawn to match it, hold'
      f' {words.percent(min(others))} to {words.percent(max(others))}.')


def _rows(found: Record) -> Iterator[tuple[str, ...]]:
  for precision, parts in found['by_precision'].items():
    for name, part in parts.items():
      trivial = found['confined'] and name in ('circuit', 'rest')
      if 'share' in part and not trivial:
        yield (precision, _PARTS.get(_kind(name), name),
               words.number(part['answered']), _recovery(part))


def _kind(name: str) -> str:
  """`random_half` for `random_half_3`."""
  return name.rstrip('0123456789').rstrip('_')


def _recovery(part: Record, sign: bool = False) -> str:
  return words.estimate(part | {'value': part['share']}, sign=sign)
