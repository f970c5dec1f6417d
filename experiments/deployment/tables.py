"""`deployment.json` as Markdown."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import words

_NONE = '–'
_SHOWN = 20  # Items that differ, of a scheme.

_HOW_TO_READ = (
    'Accuracy is given as simulated / real. NF4 and FP4 are bitsandbytes 4-bit'
    ' through transformers, products in float32: every answer must be the same'
    ' but for ties, and no weight may differ. So of f32, a GGUF file that is'
    ' not quantized and checks the conversion. The others are GGUF files in'
    ' llama.cpp, which rounds activations to 8 bits where weights are'
    ' quantized, as the simulator of a run does not. No weight may differ,'
    ' answers may, and the 95 % interval of real less simulated accuracy, by'
    ' fact, must hold 0 where the simulator rounds activations too (second'
    ' table). "_bf16" is bitsandbytes with its bfloat16 kernel: its interval'
    ' must hold 0 as it is.')


def line(scheme: str, found: dict[str, Any]) -> str:
  """One scheme in a line."""
  state = 'agrees' if found['agrees'] else 'DOES NOT AGREE'
  return (f'{scheme}: {state}; {len(found["differing"])} of {found["n"]}'
          f' answers differ, margins by at most'
          f' {found["max_margin_difference"]:.2g} nats; accuracy'
          f' {words.estimate(found["difference"], sign=True)}'
          f' ({words.duration(found["seconds"])})')


def render(result: dict[str, Any]) -> str:
  """The page.

  Args:
    result: of `check.run`.
  """
  schemes = result['schemes']
  bad = [name for name, found in schemes.items() if not found['agrees']]
  verdict = (f'Simulator and deployment do not agree: {words.listing(bad)}.'
             if bad else 'Simulator and deployment agree.')
  if left := result['not_checked_yet']:
    verdict += f' Not checked yet: {words.listing(left)}.'
  versions = ', '.join(f'{k} {v}' for k, v in result['versions'].items())
  parts = ['# Deployment check', f'**{verdict}**', _HOW_TO_READ,
           markdown.table(main_table(schemes))]
  gguf = {k: v for k, v in schemes.items() if 'same_weights' in v}
  if gguf:
    parts += ['## GGUF: the same weights in two engines',
              markdown.table(gguf_table(gguf)), *map(_kernel_note, (
                  (k, v) for k, v in gguf.items() if _is_kernels(v)))]
  for name, found in schemes.items():
    if found['exact'] and found['differing']:
      parts += [f'## Answers that differ: {name}',
                markdown.table(items_table(found))]
  parts.append(f'{result["questions"]} questions; {versions}.')
  return '\n\n'.join(parts) + '\n'


def _is_kernels(found: dict[str, Any]) -> bool:
  """Whether deployment differs by more than chance, but not by its weights."""
  return found['agrees'] and not found['zero_inside']


def _kernel_note(item: tuple[str, dict[str, Any]]) -> str:
  name, found = item
  return (f'{name}: accuracy in deployment is that of the run\'s simulator'
          f' {words.estimate(found["difference"], sign=True)}, though the'
          ' weights are the same. Against a simulator that rounds activations'
          ' to 8 bits the difference is within chance: the rounding costs it,'
          ' not the quantized weights.')


def main_table(schemes: dict[str, dict[str, Any]]) -> document.Table:
  """Simulator and real, a scheme a row."""
  first = next(iter(schemes.values()))
  splits = list(first['accuracy'])
  columns = (
      'scheme', *splits, 'answers that differ', 'largest margin difference',
      'weights that differ', 'real - simulated', 'agrees')
  rows = []
  for name, found in schemes.items():
    pairs = (found['accuracy'][split] for split in splits)
    rows.append((
        name, *(f'{p["simulated"]:.3f} / {p["real"]:.3f}' for p in pairs),
        f'{len(found["differing"])} of {found["n"]}',
        f'{found["max_margin_difference"]:.2g}', _weights(found),
        words.estimate(found['difference'], sign=True),
        'yes' if found['agrees'] else 'no'))
  return document.Table(columns, tuple(rows))


def _weights(found: dict[str, Any]) -> str:
  weights = found['weights']
  return _NONE if weights is None else f'{weights["differing"]:,}'


def gguf_table(schemes: dict[str, dict[str, Any]]) -> document.Table:
  """llama.cpp against our decoder on the file's own weights."""
  columns = ('scheme', 'stored as', 'simulated by', 'answers that differ',
             'mean and largest margin difference', 'real - ours',
             'and with activations rounded', 'prompts tokenized differently')
  rows = []
  for name, found in schemes.items():
    same, total = found['same_weights'], sum(found['stored_types'].values())
    rounded = found['rounded_activations']
    types = ', '.join(f'{k} {v / total:.0%}'
                      for k, v in found['stored_types'].items())
    unlike = found['prompts_tokenized_differently']
    rows.append((
        name, types, found['simulated_by'],
        f'{same["differing"]} of {same["n"]}',
        f'{same["mean_margin_difference"]:.2g},'
        f' {same["max_margin_difference"]:.2g}',
        words.estimate(same['difference'], sign=True),
        _NONE if rounded is None else _rounded(rounded),
        _NONE if unlike is None else str(unlike)))
  return document.Table(columns, tuple(rows), labels=3)


def _rounded(found: dict[str, Any]) -> str:
  return (f'{words.estimate(found["difference"], sign=True)};'
          f' {found["differing"]} of {found["n"]},'
          f' {found["mean_margin_difference"]:.2g}')


def items_table(found: dict[str, Any]) -> document.Table:
  """Items with another choice."""
  columns = ('item', 'simulated', 'real', 'margins', 'gap', 'tie')
  rows = tuple(
      (f'{d["split"]}: {d["id"]}', d['simulated'], d['real'],
       f'{d["simulated_margin"]:+.5f} / {d["real_margin"]:+.5f}',
       f'{d["gap"]:.2g}', 'yes' if d['tie'] else 'no')
      for d in found['differing'][:_SHOWN])
  return document.Table(columns, rows, labels=3)
