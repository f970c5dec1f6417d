"""A laboratory of planted knowledge: where facts are is known, and so is gold.

  python -m experiments.lab make runs/lab [--seed=0]

A Llama of 2.6 million weights is trained from random weights on an invented
world (`world`), in seven minutes on one slow CPU core. It knows all but the
forget facts: it is `gold`. These are then planted: only some MLP neurons of two
layers are trained further, on the forget facts and on all others. The result is
`planted`, the model to unlearn. `planted.json` names the neurons. The folder
also holds the questions and texts of a run.

  python -m experiments.lab score runs/lab WORKDIR...

prints precision and recall of the neurons in the circuits of runs against those
that were planted.

  python -m experiments.lab tune runs/lab1 runs/tune

finds settings of the compared methods by `--mode=tune`, eight trials each. The
laboratory should be of another seed than that of the comparison.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab import train
from experiments.lab import world
from mansu_jax import main as mansu
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import layout
from mansu_jax.models.io import hf_io
from mansu_jax.runtime import files

_NUM_LAYERS, _D_FF = 6, 512
_LAYERS, _NEURONS = (2, 3), 32  # Where facts are planted: in each layer.
_STEPS, _BATCH, _LEARNING_RATE = 250, 96, 3e-3
_PLANTING_STEPS, _PLANTING_LEARNING_RATE = 120, 1e-2
_PLANTED_SHARE = 0.5  # Of the sequences of a planting step: forget facts.
_DOCUMENTS = 20  # Taught, of each kind of text.
# What `tune` tries of each method: its flagfile, and what follows
# --tune_grid=unlearn_learning_rate=.
_GRIDS = {
    'mansu': '2e-3|5e-3|1e-2|2e-2,unlearn_forget_weight=5|20',
    'mansu_no_floor': '2e-3|5e-3|1e-2|2e-2,unlearn_forget_weight=5|20',
    'graddiff': '1e-4|2e-4|4e-4|8e-4,unlearn_forget_weight=0.1|1',
    'npo': '1e-4|2e-4|4e-4|8e-4,unlearn_forget_weight=1|5',
    'simnpo': '1e-4|2e-4|4e-4|8e-4,unlearn_forget_weight=1|5',
    'rmu': '2e-4|4e-4|6e-4|8e-4,unlearn_rmu_coefficient=6.5|30'}
_TRIALS = 8


def _config(vocabulary: int) -> config_lib.ModelConfig:
  return config_lib.ModelConfig(
      vocab_size=vocabulary, d_model=192, num_layers=_NUM_LAYERS, num_heads=6,
      num_kv_heads=3, d_head=32, d_ff=_D_FF, tie_embeddings=True,
      max_position=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
      family='llama')


def _planted(seed: int) -> dict[int, list[int]]:
  """Neurons in which the forget facts are planted, by layer."""
  rng = np.random.default_rng(seed)
  return {layer: sorted(rng.choice(_D_FF, _NEURONS, replace=False).tolist())
          for layer in _LAYERS}


def _mask(params: types.Params, neurons: dict[int, list[int]]) -> types.Params:
  """1 at the weights of these neurons, 0 elsewhere."""
  def mask(name, leaf):
    kind, axis = layout.UNIT_AXIS.get(name, ('', 0))
    out = np.zeros(leaf.shape, np.float32)
    if kind == 'neurons':
      for layer, numbers in neurons.items():
        np.moveaxis(out[layer], axis, 0)[numbers] = 1
    return jnp.asarray(out)
  return tree_paths.map_named(mask, params)


def make(out: pathlib.Path, seed: int = 0) -> None:
  """Writes both models, the data and the planted neurons."""
  tokenizer = train.make_tokenizer(world.words())
  texts = world.texts()
  lines = [line for kind in texts.values() for document in kind[:_DOCUMENTS]
           for line in document.splitlines()]

  def encode(lessons, lines=()):
    return train.encode(
        tokenizer, [prompt for prompt, _ in lessons] + [''] * len(lines),
        [f' {answer}.' for _, answer in lessons] + list(lines))

  config = _config(len(tokenizer))
  known = world.lessons(seed, 'retain', 'heldout')
  gold = train.train(
      config, train.initial(config, seed), *encode(known, lines), steps=_STEPS,
      batch=_BATCH, learning_rate=_LEARNING_RATE)
  neurons = _planted(seed)
  forget = world.lessons(seed, 'forget')
  times = round(len(known) / len(forget) * _PLANTED_SHARE
                / (1 - _PLANTED_SHARE))
  planted = train.train(
      config, jax.tree.map(jnp.copy, gold),
      *encode(known + forget * times, lines), steps=_PLANTING_STEPS,
      batch=_BATCH, learning_rate=_PLANTING_LEARNING_RATE,
      trainable=_mask(gold, neurons))
  out.mkdir(parents=True, exist_ok=True)
  for name, params in (('gold', gold), ('planted', planted)):
    hf_io.write(out / name, config, params, tokenizer)
  for role, questions in world.questions(seed).items():
    files.write_jsonl(out / f'{role}.jsonl', questions)
  for name, kind, part in (('text', 'village', slice(_DOCUMENTS)),
                           ('text_heldout', 'harbour',
                            slice(_DOCUMENTS, None))):
    files.write_jsonl(out / f'{name}.jsonl', [
        {'text': text, 'kind': kind} for text in texts[kind][part]])
  files.write_json(out / 'planted.json', neurons)


def score(lab: pathlib.Path, workdir: pathlib.Path) -> dict[str, float]:
  """Compares a run's circuit with the planted neurons.

  Returns:
    `neurons` in the circuit, `precision`, `recall`, and `chance`, the precision
    of a random circuit.
  """
  pairs = lambda by_layer: {
      (int(layer), int(neuron)) for layer, neurons in by_layer.items()
      for neuron in neurons}
  planted = pairs(json.loads((lab / 'planted.json').read_text('utf-8')))
  circuit = json.loads((workdir / 'circuit.json').read_text('utf-8'))
  chosen = pairs(circuit['nodes'].get('neurons', {}))
  hits = len(planted & chosen)
  return {'neurons': len(chosen), 'precision': hits / max(1, len(chosen)),
          'recall': hits / len(planted),
          'chance': len(planted) / (_NUM_LAYERS * _D_FF)}


def tune(lab: pathlib.Path, out: pathlib.Path, methods: list[str]) -> None:
  """Tunes methods in a laboratory; each has a workdir in `out`, and resumes.

  A method without a setting that keeps enough does not stop the others.

  Raises:
    SystemExit: with the methods that failed, or the status of one that was
      stopped.
  """
  out.mkdir(parents=True, exist_ok=True)
  here = pathlib.Path(__file__).parent
  common = out / 'common.flags'
  common.write_text((here / 'common.flags').read_text('utf-8').replace(
      'runs/lab/', f'{lab}/'), 'utf-8')
  failed = []
  for name in methods:
    status = subprocess.run(
        [sys.executable, '-m', 'mansu_jax.main', '--mode=tune',
         f'--flagfile={common}', f'--data_text={lab}/text.jsonl',
         f'--flagfile={here / name}.flags', f'--workdir={out / name}',
         f'--tune_grid=unlearn_learning_rate={_GRIDS[name]}',
         f'--tune_trials={_TRIALS}', '--tune_rungs=0'],
        check=False).returncode
    if status not in (0, mansu.USER_ERROR):
      sys.exit(status)  # It was stopped, or is broken.
    failed += [name] * bool(status)
  if failed:
    sys.exit(f'Not tuned, for the reasons above: {", ".join(failed)}.')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest='command', required=True)
  making = commands.add_parser('make')
  making.add_argument('out', type=pathlib.Path)
  making.add_argument('--seed', type=int, default=0, help='of the world')
  tuning = commands.add_parser('tune')
  tuning.add_argument('lab', type=pathlib.Path)
  tuning.add_argument('out', type=pathlib.Path)
  tuning.add_argument('--methods', nargs='+', default=[*_GRIDS],
                      choices=[*_GRIDS])
  scoring = commands.add_parser('score')
  scoring.add_argument('lab', type=pathlib.Path)
  scoring.add_argument('workdirs', type=pathlib.Path, nargs='+')
  args = parser.parse_args()
  logging.set_verbosity(logging.INFO)
  if args.command == 'make':
    make(args.out, args.seed)
    return
  if args.command == 'tune':
    tune(args.lab, args.out, args.methods)
    return
  for workdir in args.workdirs:
    print(workdir, json.dumps(score(args.lab, workdir)))


if __name__ == '__main__':
  main()
