"""Estimates memory and time of large models: the table of docs/scaling.md.

  python -m experiments.plan_table [--out=FILE] \\
      [--plans=MODEL:TOPOLOGY[:GIB][+SCHEME...],...]

It needs an environment with the extra `plan`. MODEL is one that is shipped, as
in `--model=shipped:MODEL`; the job is that of `experiments/plan.flags` without
attacks, generated answers and the hidden share. Plans that FILE has, by the
same code, are not made again.
"""

from __future__ import annotations

import importlib.metadata
import json
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

_FLAGS = pathlib.Path(__file__).parent / 'plan.flags'
# Their many programs take a TPU's compiler half an hour and more.
_WITHOUT = ('--eval_attacks=', '--eval_generations=0',
            '--eval_recall_questions=0', '--eval_hidden_questions=0')
_PLANS = flags.DEFINE_list('plans', [
    'llama31_8b:v5e:2x4', 'mistral_7b:v5e:2x4', 'qwen25_7b:v5e:2x4',
    'qwen3_8b:v5e:2x4', 'gemma2_9b:v5e:2x4', 'gemma3_12b:v5e:4x4',
    'phi4_mini:v5e:2x2', 'pythia_6_9b:v5e:2x4', 'gpt2_xl:v5e:1x1',
    'llama32_1b:v5e:1x1', 'llama33_70b:v5p:2x2x4',
    'llama31_8b:v5e:2x4+gptq_g128+awq_g128'],
                           'Plans to make; the schemes are planned besides'
                           ' NF4.')
_OUT = flags.DEFINE_string('out', '', 'JSON file to write after each plan.')


def _planned(text: str) -> dict[str, Any]:
  """A plan, as the file holds it."""
  where, *schemes = text.split('+')
  name, kind, shape, *memory = where.split(':')
  schemes = ('nf4', *schemes)
  found = plan.run(flags_lib.from_flagfile(
      str(_FLAGS), f'--model=shipped:{name}',
      f'--plan_topology={kind}:{shape}',
      f'--quant_schemes={",".join(schemes)}', *_WITHOUT,
      *(f'--plan_memory_gib={gib}' for gib in memory)))
  step = next(s for s in found.stages if s.name == 'unlearn').calls[0]
  return {
      'plan': text, 'model': found.model, 'topology': found.topology,
      'schemes': schemes, 'memory': found.chip.memory, 'fits': found.fits,
      'seconds_of_a_step': step.seconds, 'stages': {
          stage.name: {'bytes': stage.bytes, 'seconds': stage.seconds}
          for stage in found.stages},
      'compile_seconds': found.compile_seconds, 'notes': found.notes}


def _made(path: pathlib.Path) -> dict[str, Any]:
  """What a file has, if this code made it."""
  if path.is_file():
    found = json.loads(path.read_text('utf-8'))
    if found['environment']['commit'] == environment.commit():
      return found
  return {'plans': []}


def main(argv: list[str]) -> None:
  """Makes the plans and prints their table."""
  del argv
  path = pathlib.Path(_OUT.value)
  found = _made(path)
  for text in _PLANS.value:
    if text in [plan['plan'] for plan in found['plans']]:
      continue
    plans = [*found['plans'], _planned(text)]
    # The first plan chooses the platform, which this description fixes.
    found = {'plans': plans, 'environment': environment.describe() | {
        'libtpu': importlib.metadata.version('libtpu')}}
    if _OUT.value:
      files.write_json(path, found)
    logging.info('%s: planned', text)
  print(guides.planned(found))


if __name__ == '__main__':
  app.run(main)
