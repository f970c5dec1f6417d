"""Estimates memory and time of large models: the table of docs/scaling.md.

  python -m experiments.plan_table [--out=FILE] \\
      [--plans=NAME:TOPOLOGY[:GIB],...]

It needs an environment with the extra `plan`. NAME is that of a flagfile,
`experiments/NAME_plan.flags`. Attacks, generated answers and the hidden share
are left out.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
from typing import Any

from absl import app
from absl import flags
from absl import logging

from experiments.tables import guides
from mansu_jax.config import flags as flags_lib
from mansu_jax.flows import plan
from mansu_jax.runtime import environment
from mansu_jax.runtime import files

_FOLDER = pathlib.Path(__file__).parent
# Their many programs take a TPU's compiler half an hour and more.
_WITHOUT = ('--eval_attacks=', '--eval_generations=0',
            '--eval_recall_questions=0', '--eval_hidden_questions=0')
_PLANS = flags.DEFINE_list('plans', [
    'llama32_1b:v5e:1x1', 'llama31_8b:v5e:2x4', 'llama31_8b:v5p:1x1x1:74.5',
    'llama33_70b:v5p:2x2x4', 'llama31_8b:v5e:2x4+gptq_g128+awq_g128'],
                           'Plans to make, as NAME:TOPOLOGY[:GIB][+SCHEME...];'
                           ' the schemes are planned besides NF4.')
_OUT = flags.DEFINE_string('out', '', 'JSON file to write after each plan.')


def _planned(text: str) -> dict[str, Any]:
  """A plan, as the file holds it."""
  text, *schemes = text.split('+')
  name, kind, shape, *memory = text.split(':')
  schemes = ('nf4', *schemes)
  found = plan.run(flags_lib.from_flagfile(
      str(_FOLDER / f'{name}_plan.flags'), f'--plan_topology={kind}:{shape}',
      f'--quant_schemes={",".join(schemes)}', *_WITHOUT,
      *(f'--plan_memory_gib={gib}' for gib in memory)))
  step = next(s for s in found.stages if s.name == 'unlearn').calls[0]
  return {
      'model': found.model, 'topology': found.topology, 'schemes': schemes,
      'memory': found.chip.memory, 'fits': found.fits,
      'seconds_of_a_step': step.seconds, 'stages': {
          stage.name: {'bytes': stage.bytes, 'seconds': stage.seconds}
          for stage in found.stages},
      'compile_seconds': found.compile_seconds, 'notes': found.notes}


def main(argv: list[str]) -> None:
  """Makes the plans and prints their table."""
  del argv
  plans = []
  for text in _PLANS.value:
    plans.append(_planned(text))
    # The first plan chooses the platform, which this description fixes.
    found = {'plans': plans, 'environment': environment.describe() | {
        'libtpu': importlib.metadata.version('libtpu')}}
    if _OUT.value:
      files.write_json(pathlib.Path(_OUT.value), found)
    logging.info('%s: planned', text)
  print(guides.planned(found))


if __name__ == '__main__':
  app.run(main)
