"""Renders `deployment.json` as Markdown."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import words

_NONE = '–'
_MAX_ITEMS = 20  # Differing items shown per scheme.

_HOW_TO_READ = (
    'Accuracy is given as simulated / real. NF4 and FP4 run in bitsandbytes'
    ' 4-bit through transformers with float32 products. f32 is a GGUF file'
    ' that is not quantized; it checks the conversion. These schemes agree if'
    ' no weight differs and all answers are the same, except for ties. The'
    ' other schemes are quantized GGUF files in llama.cpp, which rounds'
    ' activations to 8 bits where weights are quantized; the simulator of a'
    ' run does not. Their answers may differ. They agree if no weight differs'
    ' and the 95 % interval by fact of real less simulated accuracy contains 0'
    ' for a simulator that rounds activations too (second table). "_bf16" is'
    ' bitsandbytes with its bfloat16 kernel. It agrees if no weight differs and'
    ' its interval in the first table contains 0.')


def line(scheme: str, found: dict[str, Any]) -> str:
  """Summary of one scheme in a line.

  Args:
    scheme: Name of the scheme.
    found: Result of the scheme, see `runner.Runner`.

  Returns:
    The line.
  """
  state = 'agrees' if found['agrees'] else 'DOES NOT AGREE'
  return (f'{scheme}: {state}; {len(found["differing"])} of {found["n"]}'
          f' answers differ, margins by at most'
          f' {found["max_margin_difference"]:.2g} nats; accuracy'
          f' {words.estimate(found["difference"], sign=True)}'
          f' ({words.duration(found["seconds"])})')


def render(result: dict[str, Any]) -> str:
  """Renders the page.

  Args:
    result: Content of `deployment.json`, see `runner.run`.

  Returns:
    Markdown.
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
              markdown.table(gguf_table(gguf)),
              *(_activation_note(name, found) for name, found in gguf.items()
                if _differs_by_activations(found))]
  for name, found in schemes.items():
    if found['exact'] and found['differing']:
      parts += [f'## Answers that differ: {name}',
                markdown.table(items_table(found))]
  parts.append(f'{result["questions"]} questions; {versions}.')
  return '\n\n'.join(parts) + '\n'


def _differs_by_activations(found: dict[str, Any]) -> bool:
  """Whether answers differ beyond chance although the weights are equal."""
  return found['agrees'] and not found['zero_inside']


def _activation_note(name: str, found: dict[str, Any]) -> str:
  return (f'{name}: accuracy in deployment differs from the simulator of the'
          f' run by {words.estimate(found["difference"], sign=True)}, although'
          ' the weights are the same. Against a simulator that rounds'
          ' activations to 8 bits, the difference is within chance. So the'
          ' rounding of activations causes it, not the quantized weights.')


def main_table(schemes: dict[str, dict[str, Any]]) -> document.Table:
  """Table of simulated and real accuracy, one scheme per row."""
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
        f'{found["max_margin_difference"]:.2g}', _weights_cell(found),
        words.estimate(found['difference'], sign=True),
        'yes' if found['agrees'] else 'no'))
  return document.Table(columns, tuple(rows))


def _weights_cell(found: dict[str, Any]) -> str:
  weights = found['weights']
  return _NONE if weights is None else f'{weights["differing"]:,}'


def gguf_table(schemes: dict[str, dict[str, Any]]) -> document.Table:
  """Table of llama.cpp against the simulator on the file's own weights."""
  columns = ('scheme', 'stored as', 'simulated by', 'answers that differ',
             'mean and largest margin difference', 'real - ours',
             'and with activations rounded', 'prompts tokenized differently')
  rows = []
  for name, found in schemes.items():
    same, total = found['same_weights'], sum(found['stored_types'].values())
    rounded = found['rounded_activations']
    types = ', '.join(f'{k} {v / total:.0%}'
                      for k, v in found['stored_types'].items())
    prompts = found['prompts_tokenized_differently']
    rows.append((
        name, types, found['simulated_by'],
        f'{same["differing"]} of {same["n"]}',
        f'{same["mean_margin_difference"]:.2g},'
        f' {same["max_margin_difference"]:.2g}',
        words.estimate(same['difference'], sign=True),
        _NONE if rounded is None else _rounded_cell(rounded),
        _NONE if prompts is None else str(prompts)))
  return document.Table(columns, tuple(rows), labels=3)


def _rounded_cell(found: dict[str, Any]) -> str:
  return (f'{words.estimate(found["difference"], sign=True)};'
          f' {found["differing"]} of {found["n"]},'
          f' {found["mean_margin_difference"]:.2g}')


def items_table(found: dict[str, Any]) -> document.Table:
  """Table of the items on which simulator and engine choose differently."""
  columns = ('item', 'simulated', 'real', 'margins', 'gap', 'tie')
  rows = tuple(
      (f'{d["split"]}: {d["id"]}', d['simulated'], d['real'],
       f'{d["simulated_margin"]:+.5f} / {d["real_margin"]:+.5f}',
       f'{d["gap"]:.2g}', 'yes' if d['tie'] else 'no')
      for d in found['differing'][:_MAX_ITEMS])
  return document.Table(columns, rows, labels=3)
