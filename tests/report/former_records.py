"""Records as former versions wrote them."""

from __future__ import annotations

from typing import Any

from tests.report import judged
from tests.report import records

CHECKS = {
    'cad_above_prompt_halves': True, 'cad_above_random_circuits': False,
    'cad_above_base_quantized': True, 'as_nc_below_prompt_halves': True,
    'as_nc_below_base_quantized': 'inconclusive'}


def _properties(gaps: dict[str, Any]) -> dict[str, Any]:
  phi, drop = judged.estimate(0.931, 0.048), judged.estimate(0.0517, 0.0121)
  return {
      'F': phi | {
          'threshold': 0.9, 'passed': 'inconclusive', 'measure': 'phi',
          'by_precision': {'fp': phi, 'nf4': judged.estimate(0.967, 0.047),
                           'int4_g128': judged.UNDEFINED},
          'worst_form': judged.estimate(0.812, 0.098, 48) | {
              'form': 'near_1', 'accuracy': {
                  'fp': 0.375, 'nf4': 0.354, 'int4_g128': 0.333}}},
      'R': drop | {
          'threshold': 0.01, 'passed': False, 'measure': 'accuracy drop',
          'by_precision': {'fp': drop, 'nf4': judged.estimate(0.018, 0.014),
                           'int4_g128': judged.estimate(0.021, 0.013)}},
      'Q': gaps['int4_g128'] | {
          'threshold': 0.01, 'passed': 'inconclusive', 'scheme': 'int4_g128',
          'measure': 'gap'},
      'S': {'value': 0.83, 'interval': [0.74, 0.93], 'threshold': 0.866,
            'checks': CHECKS, 'passed': False, 'measure': 'CAD',
            'by_precision': {'nf4': {
                'value': 0.81, 'interval': [0.7, 0.9], 'threshold': 0.851,
                'checks': dict.fromkeys(CHECKS, True), 'passed': True}}}}


def make() -> dict[str, Any]:
  """An unlearning run that was judged by accuracies, CAD and AS-NC."""
  return _former(records.make())


def audit() -> dict[str, Any]:
  """An audit of that version."""
  return _former(records.audit())


def bare() -> dict[str, Any]:
  """Without anything to judge by; CAD and AS-NC are null."""
  missing = {'value': None, 'interval': [None, None], 'threshold': None,
             'passed': 'inconclusive', 'reason': 'there are no questions'}
  return _former(records.bare()) | {
      'properties': {letter: missing for letter in 'FRQS'},
      'cad': None, 'as_nc': None}


def _former(record: dict[str, Any]) -> dict[str, Any]:
  """Without the parts that came later."""
  later = set(judged.parts()) - {'verdict', 'properties'} | {'unmeasured'}
  return {k: v for k, v in record.items() if k not in later} | {
      'properties': _properties(record['ptq_gap'])
      if record['ptq_gap'] else record['properties']}
