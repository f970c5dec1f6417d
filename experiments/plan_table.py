"""What runs on large models would take: the tables of BUILD.md.

  python -m experiments.plan_table [--plans=NAME:TOPOLOGY[:GIB],...]

In an environment with the extra `plan`. NAME is that of a shipped flagfile,
`experiments/NAME_plan.flags`.
"""

from __future__ import annotations

import pathlib

from absl import app
from absl import flags

from mansu_jax import plan
from mansu_jax import run_flags

_GIB = 2**30
_FOLDER = pathlib.Path(__file__).parent
_PLANS = flags.DEFINE_list('plans', [
    'llama32_1b:v5e:1x1', 'llama31_8b:v5e:2x4', 'llama31_8b:v6e:2x2',
    'llama33_70b:v5p:2x2x4', 'llama31_8b:v5p:1x1x1:74.5'], 'What to plan, NAME:TOPOLOGY[:GIB].')


def _planned(text: str) -> plan.Plan:
  name, kind, shape, *memory = text.split(':')
  return plan.run(run_flags.from_flagfile(
      str(_FOLDER / f'{name}_plan.flags'), f'--plan_topology={kind}:{shape}',
      *(f'--plan_memory_gib={gib}' for gib in memory)))


def rows(found: list[plan.Plan]) -> list[list[str]]:
  """Head and a row for each plan."""
  names = [stage.name for stage in found[0].stages]
  head = ['model', 'devices', 'GiB of each', *names, 'fits', 's a step',
          's in all']
  out = [head]
  for one in found:
    step = next(s for s in one.stages if s.name == 'unlearn').calls[0]
    out.append([
        one.model, one.topology, f'{one.chip.memory / _GIB:.2f}', *(
            f'{stage.bytes / _GIB:.1f}' for stage in one.stages),
        'yes' if one.fits else 'no', f'{step.seconds:.2f}',
        f'{sum(stage.seconds for stage in one.stages):.0f}'])
  return out


def main(argv: list[str]) -> None:
  """Plans and prints a table in Markdown."""
  del argv
  table = rows([_planned(text) for text in _PLANS.value])
  for i, row in enumerate(table):
    print('| ' + ' | '.join(row) + ' |')
    if not i:
      print('|' + '---|' * len(row))


if __name__ == '__main__':
  app.run(main)
