"""A plan in lines for the terminal: a row a stage, and what does not fit."""

from __future__ import annotations

from typing import Any

_GIB = 2**30
_HEADS = ('stage', 'GiB', 'held GiB', 'largest program', 'TFLOP', 's/call',
          'total s')


def lines(plan: Any) -> list[str]:
  """The plan as lines of text; the last one says whether it fits.

  Args:
    plan: a `flows.plan.Plan`.
  """
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items())
  out = [
      f'{plan.model}, {plan.weights / 1e9:.2f} billion weights, on'
      f' {plan.topology} ({plan.chip.name}, {plan.chip.memory / _GIB:.2f} GiB a'
      f' device; mesh {mesh})', *(f'note: {note}' for note in plan.notes)]
  rows = [_HEADS]
  for stage in plan.stages:
    call, ours = stage.largest, max(
        stage.calls, key=lambda c: c.calls * c.seconds, default=None)
    rows.append((
        stage.name, f'{stage.bytes / _GIB:.2f}',
        f'{sum(stage.held.values()) / _GIB:.2f}', call.name if call else '',
        f'{stage.flops / 1e12:.1f}', f'{ours.seconds:.3f}' if ours else '',
        f'{stage.seconds:.1f}'))
  widths = [max(map(len, column)) for column in zip(*rows)]
  out += ['  '.join(
      cell.ljust(width) if i in (0, 3) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
          for row in rows]
  out += [_too_much(plan, stage) for stage in plan.stages
          if not plan.fits_stage(stage)]
  seconds = sum(stage.seconds for stage in plan.stages)
  out.append(
      f'about {seconds:.0f} s of device time, assuming'
      f' {plan.efficiency:.0%} of the roofline bound; loading,'
      ' compiling, export and host work come on top. Compiling took'
      f' {plan.compile_seconds:.0f} s here.')
  largest = plan.largest
  out.append(
      f'{"fits" if plan.fits else "does not fit"}: the largest stage is'
      f' {largest.name}, {largest.bytes / _GIB:.2f} of'
      f' {plan.chip.memory / _GIB:.2f} GiB a device')
  return out


def _too_much(plan: Any, stage: Any) -> str:
  """Why a stage does not fit, and which flags to change."""
  refused = '; '.join(f'{c.name} does not compile ({c.refused})'
                      for c in stage.calls if c.refused)
  ways = ['use more devices, or a larger --mesh_fsdp or --mesh_tensor']
  if plan.dtype == 'float32':
    ways.insert(0, 'give --export_dtype=bfloat16')
  if stage.fixed < plan.chip.memory:  # Otherwise smaller batches do not help.
    ways.insert(0, f'lower {", ".join(stage.flags or ["--circuit_budget"])}')
  advice = '; or '.join(ways)
  advice = f'{advice[0].upper()}{advice[1:]}.'
  if refused and stage.bytes <= plan.chip.memory:
    return f'{stage.name} does not compile: {refused}. {advice}'
  parts = ', '.join(f'{name} {size / _GIB:.2f}'
                    for name, size in stage.held.items())
  largest = stage.largest and (
      f', and {stage.largest.name} takes {stage.largest.bytes / _GIB:.2f} more')
  return (f'{stage.name} does not fit: it holds {parts} GiB{largest or ""}.'
          f' {advice}')
