"""The judged parts of a record by hand, in the shapes of today's stages."""

from __future__ import annotations

from typing import Any

SCHEMES = ('nf4', 'int4_g128')
PRECISIONS = ('fp', *SCHEMES)
UNDEFINED = {'value': None, 'n': 300, 'facts': 50, 'interval': [None, None],
             'lower': None, 'upper': None}
# Reading -> ignorance, accuracy of the base and of the unlearned model.
_READINGS = {
    'choice': (0.317, 0.956, 0.312), 'choice_unseen': (0.284, 0.941, 0.346),
    'generation_few_shot': (0.021, 0.842, 0.087),
    'reverse': (0.336, 0.913, 0.451), 'choice_same_subject': (
        0.402, 0.731, 0.518)}
_SHOWN_ONLY = 'choice_same_subject'  # Decides nothing.


def estimate(value: float, half: float, n: int = 300) -> dict[str, Any]:
  """An entry as `bootstrap.Estimate.record` makes it."""
  return {'value': value, 'n': n, 'facts': n // 6,
          'interval': [value - half, value + half],
          'lower': value - 0.84 * half, 'upper': value + 0.84 * half}


def _by_precision(value: float, half: float, step: float) -> dict[str, Any]:
  """The value in full precision, and a step away under each quantizer."""
  return {p: estimate(value + i * step, half)
          for i, p in enumerate(PRECISIONS)}


def forgetting() -> dict[str, Any]:
  """No plainly generated answers; one quantized base has no lead."""
  out = {}
  for name, (ignorance, base, after) in _READINGS.items():
    known = (after - ignorance) / (base - ignorance)
    out[name] = {
        'base': _by_precision(base, 0.021, -0.031),
        'unlearned': _by_precision(after, 0.034, -0.008),
        'ignorance': {m: dict.fromkeys(PRECISIONS, ignorance)
                      for m in ('base', 'unlearned')},
        'known': _by_precision(max(known, 0.0), 0.047, 0.004), 'avoided': {}}
  out['choice']['avoided'] = {'nf4': estimate(-0.081, 0.044)}
  out['reverse']['known']['int4_g128'] = UNDEFINED
  return out


def _phi(known: dict[str, Any]) -> dict[str, Any]:
  if known['value'] is None:
    return UNDEFINED | {'upper_of_all': None}
  found = estimate(1 - known['value'], 0.047)
  return found | {'upper_of_all': found['value'] + 0.091}


def _forgotten(found: dict[str, Any]) -> dict[str, Any]:
  by_reading = {
      name: {p: _phi(known) for p, known in entry['known'].items()}
      for name, entry in found.items() if name != _SHOWN_ONLY}
  return by_reading['reverse']['nf4'] | {
      'threshold': 0.89, 'passed': False, 'reading': 'reverse',
      'precision': 'nf4', 'by_reading': by_reading, 'measure': 'phi'}


def _retained() -> dict[str, Any]:
  drop = lambda value, n: estimate(value, 0.0121, n) | {
      'interval_of_all': [value - 0.0153, value + 0.0153]}
  heldout = {p: drop(v, 252) for p, v in zip(
      PRECISIONS, (0.0517, 0.0183, 0.0214))}
  trained = {p: drop(v, 300) for p, v in zip(
      PRECISIONS, (0.0141, -0.0412, 0.0037))}
  return heldout['fp'] | {
      'threshold': 0.01, 'passed': False, 'split': 'retain_heldout',
      'precision': 'fp', 'by_precision': heldout, 'trained': trained,
      'measure': 'accuracy drop on held-out facts'}


def _brought_back(names: list[str]) -> dict[str, Any]:
  def entry(value):
    return estimate(value, 0.0314) | {
        'interval_of_all': [value - 0.0481, value + 0.0481],
        'by_reading': {name: estimate(value + 0.0031 * (i + 1), 0.0617)
                       for i, name in enumerate(names)}}

  by_scheme = {'nf4': entry(-0.0142), 'int4_g128': entry(0.0085)}
  return by_scheme['int4_g128'] | {
      'threshold': 0.01, 'passed': 'inconclusive', 'scheme': 'int4_g128',
      'by_scheme': by_scheme, 'measure': 'known(quantized) - known(fp)'}


def structure() -> dict[str, Any]:
  """Hidden in full precision; one gate is not measured."""
  def share(value, reading, other):
    shares = {'block': other, 'early': other, 'looks': other + 0.02,
              'values': value + 0.1, 'last_state': other - 0.1} | {
                  reading: value + 0.043}
    return {'value': value, 'interval': [value - 0.091, value + 0.097],
            'interval_of_all': [value - 0.113, value + 0.119],
            'reading': reading, **shares, 'own': 0.043, 'left': {
                'reading': reading, 'value': value + 0.043,
                'interval': [value - 0.02, value + 0.1]},
            'answered': {'values': 0.58, 'last_state': 0.44, 'own': 0.31}}

  gate = {'value': 0.983, 'interval': [0.951, 1.0], 'reading': 'block',
          'block': 0.983, 'early': 0.981, 'values': 0.983,
          'last_state': 0.972, 'level': 0.9,
          'hidden': {'value': 0.012, 'interval': [-0.01, 0.03]},
          'hidden_level': 0.2, 'holds': True}
  return {
      'mover_layer': 17,
      'by_layer': [0.99] * 16 + [0.96, 0.91] + [0.04] * 12,
      'hidden_share': {'fp': share(0.377, 'block', 0.214),
                       'nf4': share(0.318, 'after_17', 0.109),
                       'int4_g128': share(0.262, 'block', 0.187)},
      'gates': {
          'sharp_mover': {
              'value': 0.91, 'interval': [None, None], 'level': 0.8,
              'next_layer': 0.04, 'next_level': 0.2, 'holds': True},
          'another_fact': gate | {'value': 0.107, 'level': 0.2,
                                  'interval': [0.031, 0.178]},
          'noise': gate, 'base_quantized': gate | {'value': 0.931},
          'retained': {
              'value': None, 'interval': [None, None], 'level': 0.9,
              'holds': 'inconclusive', 'reason': 'there are too few retain'
              ' questions with partners'}},
      'questions': 240, 'facts': 50,
      'answered': {'base': 0.967, 'guessed': 0.273},
      'readings': ['block', 'early']}


def attacks() -> dict[str, Any]:
  """Two attacks; one diverged on facts never known before its last step."""
  def steps(*values):
    return [{'step': step, 'guessed': 0.25, 'known': round(
        (value - 0.25) / 0.75, 3)} | estimate(value, 0.083, 120)
            for step, value in zip((0, 2, 10), values)]

  side = {'taught_facts': 24, 'asked_facts': 25, 'questions': 120,
          'narrowed': 3, 'dropped': 1, 'reading': 'choice_unseen',
          'chance': 0.257, 'base': 0.942, 'base_guessed': 0.26,
          'unprobed': 0}
  verdict = {
      'attack': 'lora_3e-4', 'precision': 'nf4', 'step': 10,
      'comparisons': 12, 'gain': estimate(0.362, 0.093, 120),
      'gain_unknown': estimate(0.041, 0.058, 114),
      'difference': estimate(0.321, 0.108, 120) | {'lower_of_all': 0.137},
      'passed': False, 'reason': 'untaught facts return beyond guessing'}
  return {
      'attacks': {
          'lora_3e-4': {'fp': steps(0.346, 0.383, 0.617),
                        'nf4': steps(0.338, 0.375, 0.7)},
          'benign_3e-5': {'fp': steps(0.346, 0.354, 0.367),
                          'nf4': steps(0.338, 0.342, 0.35)}},
      'attacks_unknown': {
          'lora_3e-4': {'fp': steps(0.254, 0.263, 0.298),
                        'nf4': steps(0.246, 0.254, 0.287)},
          'benign_3e-5': {'fp': steps(0.254, 0.254),
                          'nf4': steps(0.246, 0.246)}},
      'attack_setup': {
          'benign_on': 'text', 'forget': side, 'unknown': side | {
              'taught_facts': 18, 'asked_facts': 19, 'questions': 114,
              'base': 0.263}},
      'attack_verdict': verdict}


def hidden_property(found: dict[str, Any]) -> dict[str, Any]:
  """Property S of a structure and of the attacks."""
  shares = found['hidden_share']
  return {k: shares['fp'][k] for k in ('value', 'interval')} | {
      'threshold': 0.2, 'precision': 'fp', 'passed': False,
      'measure': 'hidden share', 'by_precision': {
          p: {k: entry[k] for k in ('value', 'interval')}
          for p, entry in shares.items()},
      'reasons': ['the hidden share is not valid here: retained out of range',
                  'untaught facts return beyond guessing']}


def parts() -> dict[str, Any]:
  """The verdict, properties, readings, hidden share and attacks."""
  read, hidden = forgetting(), structure()
  return {
      'verdict': {'passed': False}, 'properties': {
          'F': _forgotten(read), 'R': _retained(),
          'Q': _brought_back([n for n in read if n != _SHOWN_ONLY]),
          'S': hidden_property(hidden)},
      'forgetting': read, 'structure': hidden, **attacks()}


def nothing() -> dict[str, Any]:
  """The same parts where nothing can be judged."""
  missing = lambda why, threshold=None: {
      'value': None, 'interval': [None, None], 'threshold': threshold,
      'passed': 'inconclusive', 'reason': why}
  asked = 'the forget set has no near or far questions'
  hidden = 'there are too few forget questions'
  attacked = missing('the forget facts do not suffice')
  shares = {k: v for k, v in missing('', 0.2).items() if k != 'reason'}
  return {
      'verdict': {'passed': 'inconclusive'}, 'properties': {
          'F': missing(asked, 0.89),
          'R': missing('there are no held-out questions', 0.01),
          'Q': missing(asked, 0.01), 'S': shares | {'reasons': [
              f'the hidden share is not measured: {hidden}',
              attacked['reason']]}},
      'forgetting': {}, 'structure': {'reason': hidden}, 'attacks': {},
      'attacks_unknown': {}, 'attack_setup': {}, 'attack_verdict': attacked}
