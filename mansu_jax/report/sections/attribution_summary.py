"""The outcome of attribution in a few lines, for the terminal."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import words


def lines(record: dict[str, Any]) -> list[str]:
  """The pairs, the circuit, its faithfulness and stability, and the files."""
  circuit, metric = record['circuit'], record['metric']
  workdir = record['config']['workdir']
  return [
      f'attributed {metric["answered"]} of {metric["pairs"]} pairs: metric'
      f' {metric["clean"]:.2f} clean, {metric["corrupt"]:.2f} corrupted',
      f'circuit of {_size(circuit)}: faithfulness'
      f' {circuit["faithfulness"]:.2f}{_random(circuit["random"])}',
      _curve(circuit),
      *_stability(circuit.get('stability', {})),
      f'scores: {workdir}/attribution.npz',
      f'circuit: {workdir}/circuit.json',
      f'report: {workdir}/report.html']


def _size(circuit: dict[str, Any]) -> str:
  nodes = circuit['nodes']
  if circuit['level'] == 'edge':
    return (f'{circuit["edges"]} of {circuit["candidates"]:,} edges, on {nodes}'
            ' nodes')
  return ', '.join(f'{count} {kind.replace("_", " ")}'
                   for kind, count in nodes.items())


def _random(random: dict[str, Any]) -> str:
  if random['mean'] is None:
    return ''
  same = (f', {random["same"]} of {random["circuits"]} identical to the circuit'
          if random['same'] else '')
  return (f' (random circuits: mean {words.number(random["mean"], 2)}, most'
          f' {words.number(random["max"], 2)}{same})')


def _curve(circuit: dict[str, Any]) -> str:
  if 'curve' not in circuit:
    return f'curve: none; {circuit["no_curve"]}'
  prefix = circuit['smallest_faithful_prefix']
  reached = prefix.get('edges', prefix.get('nodes'))
  smallest = 'no prefix' if reached < 0 else f'the first {reached:,}'
  return (f'curve: CPR {circuit["cpr"]:.3f}, CMD {circuit["cmd"]:.3f};'
          f' {smallest} of {prefix["candidates"]:,} reach'
          f' {prefix["target"]:g}')


def _stability(found: dict[str, Any]) -> list[str]:
  """The share of the circuit that other pairs select."""
  if 'halves' not in found:
    return [f'stability: not measured; {found["reason"]}'
            ] if 'reason' in found else []
  compared = [('disjoint halves of the facts', found['halves'])] + [
      (f'{use} phrasings', entry) for use, entry in found.get(
          'phrasings', {}).items() if 'kept' in entry]
  shares = ', '.join(
      f'{name} {entry["kept"].get("mean", entry["kept"].get("value")):.2f}'
      for name, entry in compared)
  return [f'share of the circuit selected again from other pairs: {shares};'
          f' random {found["random"]["kept"]["mean"]:.2f}']
