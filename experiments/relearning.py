"""Relearning of every arm of `circuit_worth`: how soon do facts come back?

  python -m experiments.relearning DIR [--seed=0] [--arms budget_1 ...]
      [--run=experiments/former.flags]

DIR is a folder of `experiments.circuit_worth`, and `--run` its flagfile. The
attack is that of `python -m mansu_jax.deployment.relearn`, which attacks
exported models; all arms see the same batches. Records are
`DIR/relearning/ARM_sN.json`, with readability and with CAD on the arm's own
circuit and, for a random circuit, on the attributed circuit of its settings.
Existing records are skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import circuit_worth_table
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.config import flags as flags_lib
from mansu_jax.deployment import relearning_records
from mansu_jax.erasure import divergence
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.train import edits


def _read(path: pathlib.Path) -> tuple[graph.Circuit, types.PyTree]:
  """The circuit of an arm, and its edited slices."""
  with np.load(path, allow_pickle=False) as z:
    arrays = dict(z)
  theta = tree_paths.unflatten({
      name.removeprefix('theta/'): x for name, x in arrays.items()
      if name.startswith('theta/')})
  return graph.Circuit(**{kind: arrays[kind] for kind in graph.KINDS}), theta


def _arms(
    folder: pathlib.Path, session: relearning_records.Session,
    wanted: list[str] | None) -> Iterator[relearning_records.Target]:
  """Finished arms of the session's seed; all of them, or those in `wanted`."""
  seed, cad = session.config.seed, _cad(session)
  for path in sorted(folder.glob(f'*_s{seed}.npz')):
    if not path.with_suffix('.json').exists():
      continue  # The arm is still running.
    arm = json.loads(path.with_suffix('.json').read_text())['arm']
    if wanted and arm not in wanted:
      continue
    circuit, theta = _read(path)
    circuits = {'own': circuit}
    attributed = folder / f'{circuit_worth_table.setting(arm)}_s{seed}.npz'
    if circuit_worth_table.is_random(arm) and attributed.exists():
      circuits['attributed'] = _read(attributed)[0]
    edit = edits.circuit_edit(
        session.model, circuit, (), quantized_views=False)
    yield relearning_records.Target(
        arm, functools.partial(edit.merge, theta),
        functools.partial(cad, circuits))


def _cad(
    session: relearning_records.Session) -> Callable[..., dict[str, Any]]:
  """`(circuits by name, params) -> CAD by name` on the run's forget pairs."""
  config, model = session.config, session.model
  pairs = prompt_pairs.forget_pairs(
      settings_lib.Settings.from_run(config), session.inputs.splits,
      model.tokenizer)[:config.eval.cad_pairs]
  batches = pair_batches.pack(pairs, config.attribution.batch)
  score = lambda params: eap_ig.score_pairs(
      model.config, params, batches, steps=config.attribution.steps)
  before, answered = eap_ig.keep_answered(score(model.params))
  facts = np.array([p.fact for p in pairs])[answered]

  def measure(circuits, params):
    after = jax.tree.map(lambda x: x[answered], score(params))
    return {name: divergence.measure(
        before, after, {}, nodes, facts, resamples=config.eval.bootstrap,
        seed=config.seed) for name, nodes in circuits.items()}

  return measure


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
      '--arms', nargs='*', help='Arms to attack; default: all finished arms.')
  parser.add_argument('--run', default='experiments/former.flags')
  return parser.parse_args()


def main() -> None:
  """Attacks every arm."""
  args = _parse()
  session = relearning_records.Session(flags_lib.from_flagfile(
      args.run, f'--seed={args.seed}', f'--workdir={args.folder}/unused'))
  for record in session.write_records(
      _arms(args.folder, session, args.arms), args.folder):
    print(relearning_records.summary_line(record), flush=True)


if __name__ == '__main__':
  main()
