"""Is the circuit worth it? Attributed against random, at equal forgetting.

  python -m experiments.circuit_worth --out=DIR [--arms=attributed,random:0]
      [--seeds=0,1,2] [--flagfile_of_run=experiments/former.flags]
  python -m experiments.circuit_worth_table DIR

Each arm edits another circuit with the settings, data and batches of the run.
Every five steps from the 40th, the arm's accuracy on far phrasings of the
forget set is measured. When it is at most `--target` twice in a row, training
stops and the arm is evaluated. So arms are compared at equal forgetting, by how
much they retain. Before step 40 the learning rate is near its peak and all
accuracies drop for a while, retained ones too.

An arm is a key of `ARMS`; `random:N`, the N-th random circuit with as many
nodes in each layer as the attributed one; or `ARM+random:N`, the same with the
settings of that arm. An arm of edges moves only the parts of its nodes that an
edge reads or writes, and its random circuits move the same parts. Harder forget
sets are other flagfiles: `--flagfile_of_run=experiments/entity.flags`.

Each arm and seed gives a JSON record and the edited weights (`.npz`, the
circuit's slices). Existing records are skipped. `questions_sN.json` lists the
questions of seed N in the order of the answers. `setting_sN.json` has the
settings that its arms share; a run with other settings is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import json
import pathlib
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_weights
from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as run_config
from mansu_jax.eval import perplexity
from mansu_jax.eval import scoring
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import files
from mansu_jax.stages import checks
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import quantizer_rules
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import training
from mansu_jax.unlearn import batches as batches_lib

_OUT = flags.DEFINE_string('out', None, 'Folder of the results.')
_RUN = flags.DEFINE_string(
    'flagfile_of_run', 'experiments/former.flags', 'Flagfile of the run.')
_ARMS = flags.DEFINE_list('arms', ['attributed'], 'Arms to run, in order.')
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds of data and batches.')
_TARGET = flags.DEFINE_float(
    'target', 0.33, 'Accuracy on far phrasings at which an arm stops.')
_EVERY, _FROM = 5, 40  # Steps between checkpoints, and before the first.
_IN_A_ROW = 2  # Checkpoints at the target that stop an arm.
_KEPT = ('level', 'selection', 'nodes', 'edges', 'pairs', 'share_of_weights',
         'faithfulness', 'faithfulness_of_none')  # Of a circuit's report.

_FIRST = ('--attribution_level=neuron', '--circuit_budget=0.06')
_SMALL = ('--circuit_budget=0.01',)
_BOTH = (*_SMALL, '--attribution_level=neuron_and_head')
ARMS = {  # Beside _FIRST.
    'attributed': (),
    'head': ('--attribution_level=head',),
    'neuron_and_head': ('--attribution_level=neuron_and_head',),
    'edge': ('--attribution_level=edge',),
    'contrast': ('--circuit_contrast=1',),
    'layers_2_23': ('--circuit_first_layer=2',),
    'layers_2_12': ('--circuit_first_layer=2', '--circuit_last_layer=12'),
    'layers_18_29': ('--circuit_first_layer=18', '--circuit_last_layer=29'),
    'budget_3': ('--circuit_budget=0.03',),
    'budget_1': _SMALL,
    'budget_0.5': ('--circuit_budget=0.005',),
    'budget_1_head': (*_SMALL, '--attribution_level=head'),
    'budget_1_neuron_and_head': _BOTH,
    'budget_1_neuron_and_head_all_layers': (
        *_BOTH, '--circuit_first_layer=0', '--circuit_last_layer=-1'),
    'budget_1_neuron_and_head_layers_2_23': (*_BOTH, '--circuit_first_layer=2'),
    'budget_1_neuron_and_head_fisher_0.5': (
        *_BOTH, '--edit_fisher_quantile=0.5'),
    'budget_1_edge': (*_SMALL, '--attribution_level=edge'),
    'budget_1_edge_1000': (
        *_SMALL, '--attribution_level=edge', '--circuit_edges=1000'),
    'budget_1_contrast': (*_SMALL, '--circuit_contrast=1'),
    'budget_1_layers_2_23': (*_SMALL, '--circuit_first_layer=2'),
    # Fact look-up in MLPs against heads that move answers, which lie late.
    'budget_1_late_heads': (
        *_SMALL, '--attribution_level=head', '--circuit_first_layer=22',
        '--circuit_last_layer=29'),
    'budget_1_layers_18_29': (
        *_SMALL, '--circuit_first_layer=18', '--circuit_last_layer=29'),
    'budget_1_fisher_1': (*_SMALL, '--edit_fisher_quantile=1'),
    'fisher_0.5': ('--edit_fisher_quantile=0.5',),
    'fisher_1': ('--edit_fisher_quantile=1',),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
  """Model, data and batches that all arms of a seed share."""

  config: run_config.RunConfig
  inputs: inputs_lib.Inputs
  model: Any
  batches: batches_lib.Batches
  evaluator: evaluation.Evaluator
  far: evaluation.Evaluator  # Of the far phrasings alone.
  quantize: quantizers.Quantizers


def prepare(seed: int) -> Bench:
  """Loads the model, data and batches, which all circuits share."""
  config = flags_lib.from_flagfile(
      _RUN.value, f'--seed={seed}', '--circuit_random_circuits=1',
      f'--workdir={_OUT.value}/unused', *_FIRST)
  inputs = checks.read(config)
  model = loading.load(
      config.model, hf_io.EXPORT_DTYPES[config.export_dtype])
  only_far = dataclasses.replace(inputs, heldout_text=[], evaluation={
      'forget_far': inputs.evaluation['forget_far']})
  return Bench(
      config=config, inputs=inputs, model=model,
      batches=pools.make_batches(
          config.unlearn, config.data, inputs.splits, model, seed=seed),
      evaluator=evaluation.Evaluator(
          config.eval, config.data, inputs, model),
      far=evaluation.Evaluator(
          config.eval, config.data, only_far, model),
      quantize=quantizers.Quantizers(
          config.quant_schemes, model, calibration_texts=inputs.calibration,
          calibration_tokens=config.eval.calibration_tokens))


def check_setting(bench: Bench, path: pathlib.Path) -> None:
  """Writes the settings that all arms of a seed share, or compares them.

  Raises:
    ValueError: the folder has arms with other settings.
  """
  config = dataclasses.asdict(bench.config)
  del config['workdir']
  setting = json.loads(json.dumps({
      'target': _TARGET.value, 'config': config,
      'hashes': bench.inputs.hashes}))
  if not path.exists():
    files.write_json(path, setting)
    return
  now = tree_paths.flatten(setting)
  before = tree_paths.flatten(json.loads(path.read_text()))
  differ = [f'{key} was {before[key]} and is now {now[key]}'
            for key in now if key in before and before[key] != now[key]]
  if differ:
    raise ValueError(
        f'--out={path.parent} has arms with other settings:'
        f' {"; ".join(differ)}. Give another folder: arms are compared under'
        ' equal settings.')


def circuit_of(
    bench: Bench, config: run_config.RunConfig, draw: int | None,
    kept: dict[Any, Any]) -> attribution.Found:
  """The arm's circuit, with the report on the attributed one."""
  key = config.attribution, config.circuit
  if key not in kept:
    settings = settings_lib.Settings.from_run(config)
    kept[key] = attribution.run(settings, bench.inputs.splits, bench.model)
  found = kept[key]
  if draw is None:
    return found
  layers = select.layer_range(config.circuit, bench.model.config.num_layers)
  rng = np.random.default_rng([draw, 1])
  circuit = select.matched_random(found.circuit, layers, rng)
  movable = found.movable and edge_weights.transfer(
      found.movable, found.circuit, circuit, rng)
  return dataclasses.replace(found, circuit=circuit, movable=movable)


def run(bench: Bench, arm: str, kept: dict[Any, Any]) -> Iterator[Any]:
  """Trains one arm up to the target; yields its record, then its weights."""
  start = time.monotonic()
  name, _, draw = arm.rpartition('random:')
  draw = int(draw) if 'random:' in arm else None
  name = (name.rstrip('+') or 'attributed') if draw is not None else arm
  config = flags_lib.from_flagfile(
      _RUN.value, f'--seed={bench.config.seed}',
      '--circuit_random_circuits=1', f'--workdir={_OUT.value}/unused',
      *_FIRST, *ARMS[name])
  found = circuit_of(bench, config, draw, kept)
  circuit = found.circuit
  edit = edits.circuit_edit(
      bench.model, circuit,
      quantizer_rules.with_fixed_grid(config.quant_schemes),
      quantized_views=config.unlearn.quantizer_in_loop,
      storage_dtype=config.export_dtype, movable=found.movable)
  fisher = None
  if config.edit.projection != 'none':
    fisher = training.circuit_fisher(config.fisher, edit, training.fisher_spans(
        config.fisher, bench.batches, seed=config.seed), seed=config.seed)
  common, far = circuit.span[0], []

  def reached():
    last = [value for _, value in far[-_IN_A_ROW:]]
    return len(last) == _IN_A_ROW and max(last) <= _TARGET.value

  def accuracy(step, theta):
    if step < _FROM or step % _EVERY:
      return False
    measured = bench.far(
        edit.merge(theta), common=common,
        kept=kept.setdefault(('far', common), scoring.HiddenCache()))
    far.append((step, float(measured.scores.correct.mean())))
    logging.info('%s step %d: far %.3f', arm, *far[-1])
    return reached()

  done = training.unlearn(
      config.unlearn, config.edit, edit, fisher, bench.batches,
      total_weights=tree_paths.count(bench.model.params), visit=accuracy,
      log_every=_EVERY)
  out = {'arm': arm, 'seed': bench.config.seed, 'draw': draw, 'far': far,
         'reached': reached(), 'steps': far[-1][0],
         'circuit': {k: x for k, x in found.report.items() if k in _KEPT},
         'moved': float(done['history']['moved'][-1]),
         'weights': edge_weights.num_weights(
             circuit, found.movable, bench.model.config)
         / tree_paths.count(bench.model.params)}
  out |= _measure(bench, edit.merge(done['theta']), common, kept)
  yield out | {'seconds': time.monotonic() - start}
  yield circuit, done['theta']


def _measure(
    bench: Bench, params: types.Params, common: int, kept: dict[Any, Any]
) -> dict[str, Any]:
  """Right answers by question and perplexities, in fp and quantized."""
  right, losses = {}, {}
  for precision in ('fp', bench.config.quant_schemes[0]):
    view = params if precision == 'fp' else bench.quantize(precision, params)
    found = bench.evaluator(view, common=common, kept=kept.setdefault(
        (precision, common), scoring.HiddenCache()))
    right[precision] = ''.join(map(str, found.scores.correct.astype(int)))
    losses[precision] = perplexity.pool(
        found.texts.values()).perplexity
  return {'right': right, 'perplexity': losses}


def _questions(bench: Bench) -> list[tuple[str, str, str, str]]:
  """Split, id, fact and relation of each question."""
  split_of = [name for name, rows in bench.evaluator.slices.items()
              for _ in range(rows.start, rows.stop)]
  return [(split, q.id, q.fact, q.relation)
          for split, q in zip(split_of, bench.evaluator.questions)]


def main(argv: list[str]) -> None:
  """Runs the arms of each seed."""
  del argv
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  for seed in map(int, _SEEDS.value):
    bench, kept = None, {}
    for arm in _ARMS.value:
      path = out / f'{arm.replace(":", "_").replace("+", "_")}_s{seed}.json'
      if path.exists():
        continue
      if bench is None:
        bench = prepare(seed)
        check_setting(bench, out / f'setting_s{seed}.json')
        files.write_json(out / f'questions_s{seed}.json', _questions(bench))
      record, (circuit, theta) = run(bench, arm, kept)
      files.write_npz(path.with_suffix('.npz'), {
          kind: circuit[kind] for kind in graph.KINDS} | {
              f'theta/{k}': np.asarray(v)
              for k, v in tree_paths.flatten(theta).items()})
      files.write_json(path, record)
      del record, circuit, theta
    jax.clear_caches()


if __name__ == '__main__':
  flags.mark_flag_as_required('out')
  app.run(main)
