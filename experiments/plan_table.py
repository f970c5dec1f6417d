"""Estimates memory and time of large models: the table of docs/scaling.md.

  python -m experiments.plan_table [--plans=NAME:TOPOLOGY[:GIB],...]

It needs an environment with the extra `plan`. NAME is that of a flagfile,
`experiments/NAME_plan.flags`.
"""

from __future__ import annotations

import pathlib

from absl import app
from absl import flags

from mansu_jax.config import flags as flags_lib
from mansu_jax.flows import plan

_GIB = 2**30
_FOLDER = pathlib.Path(__file__).parent
_PLANS = flags.DEFINE_list('plans', [
    'llama32_1b:v5e:1x1', 'llama32_1b:v6e:1x1', 'llama31_8b:v5e:2x4',
    'llama31_8b:v5p:1x1x1:74.5', 'llama33_70b:v5p:2x2x4'],
                           'Plans to make, as NAME:TOPOLOGY[:GIB].')


def _planned(text: str) -> plan.Plan:
  name, kind, shape, *memory = text.split(':')
  return plan.run(flags_lib.from_flagfile(
      str(_FOLDER / f'{name}_plan.flags'), f'--plan_topology={kind}:{shape}',
      *(f'--plan_memory_gib={gib}' for gib in memory)))


def _row(found: plan.Plan) -> list[str]:
  step = next(s for s in found.stages if s.name == 'unlearn').calls[0]
  return [
      found.model, found.topology, f'{found.chip.memory / _GIB:.2f}', *(
          f'{stage.bytes / _GIB:.1f}' for stage in found.stages),
      'yes' if found.fits else 'no', f'{step.seconds:.2f}',
      f'{sum(stage.seconds for stage in found.stages):.0f}']


def main(argv: list[str]) -> None:
  """Plans and prints a table in Markdown, a row as soon as it is known."""
  del argv
  line = lambda cells: print('| ' + ' | '.join(cells) + ' |', flush=True)
  for i, text in enumerate(_PLANS.value):
    found = _planned(text)
    if not i:
      line(['model', 'devices', 'GiB of each', *(
          stage.name for stage in found.stages), 'fits', 's a step',
            's in all'])
      line(['---'] * (len(found.stages) + 6))
    line(_row(found))


if __name__ == '__main__':
  app.run(main)
