"""What is planned, and what several stages do with it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import param_mask
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from mansu_jax.models import calibration
from mansu_jax.models import layout as model_layout
from mansu_jax.models.io import loading
from mansu_jax.planning import recorder as recorder_lib
from mansu_jax.quant import affine
from mansu_jax.quant import simulate
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What is planned.

  Attributes:
    config: the run's.
    inputs: its data.
    model: with shapes for params, placed.
    circuit: as large as the run's.
    index: of it, and `replacement_masks`: shapes, whole on every device.
    recorder: keeps account.
  """

  config: run_config.RunConfig
  inputs: inputs_lib.Inputs
  model: loading.LoadedModel
  circuit: graph.Circuit
  index: param_mask.CircuitIndex
  replacement_masks: types.Params
  recorder: recorder_lib.Recorder

  @property
  def frozen(self) -> types.PyTree:
    """What a step does not train."""
    return {'params': self.model.params, 'index': self.index,
            'replacement_masks': self.replacement_masks}

  @functools.cached_property
  def windows(self) -> tuple[np.ndarray, np.ndarray]:
    """Of the text that quantizers are calibrated with."""
    return quantizers.calibration_windows(
        self.config, self.inputs, self.model.tokenizer)


def draw_circuit(config: run_config.RunConfig, shapes: Any) -> graph.Circuit:
  """A circuit of the run's size, from scores that are drawn by its seed.

  Of each kind of node the same share: scores are so many a weight.
  """
  rng, costs = np.random.default_rng(config.seed), graph.costs(shapes)
  means = {kind: costs[kind] * rng.normal(size=size)
           for kind, size in graph.shapes(shapes).items()}
  return select.choose(
      means, config.attribution.level, config.circuit, shapes)[1]


def scores(job: Job, pairs: Any, runs: int = 1) -> None:
  """Node scores of some pairs, by so many models."""
  if not pairs:
    return
  options = job.config.attribution
  batches = pair_batches.to_score(pairs, options.batch, job.model.config)
  job.recorder.call(
      'eap_ig.pair_scores', eap_ig.pair_scores, job.model.config,
      job.model.params, recorder_lib.shapes_of(batches[0]),
      calls=runs * len(batches), steps=options.steps)


def forget_pairs(job: Job) -> Any:
  """Those of the run."""
  return prompt_pairs.forget_pairs(
      job.config.attribution, job.inputs.splits, job.model.tokenizer,
      seed=job.config.seed, chat=job.config.data.chat)


def matrices(job: Job, params: types.Params | None = None) -> types.Params:
  """What one more model holds: all else it shares with the base."""
  flat = tree_paths.flatten(params or job.model.params)
  return {leaf: flat[leaf] for leaf in model_layout.MATRICES}


def quantized(
    job: Job, name: str, calls: int = 1, *, in_place: bool = False
) -> types.Params:
  """The model under a quantizer, made leaf by leaf.

  Args:
    job: what is planned; its stage holds the result already.
    name: the quantizer's.
    calls: how many models.
    in_place: whether it takes the memory of what it is made of.
  """
  scheme, flat = quant.find(name), tree_paths.flatten(job.model.params)
  if not isinstance(scheme, quant.Scheme):
    return _decoded(job, name, calls)
  run = (simulate.fake_quantize_in_place if in_place
         else simulate.fake_quantize_leaf)
  for leaf, layout in model_layout.MATRICES.items():
    job.recorder.call(
        f'blocks of {leaf}', simulate.any_extreme, flat[leaf], calls=calls)
    flat[leaf] = job.recorder.call(
        f'{name} of {leaf}', run, flat[leaf], scheme.ordinary(), layout,
        calls=calls, held=not in_place)
  return tree_paths.unflatten(flat)


def calibrated(job: Job, name: str, calls: int) -> None:
  """Codes of so many models, made with the run's calibration text."""
  job.recorder.call(
      f'calibration of {name}', *_calibration(job, name), calls=calls)


def codes(job: Job, name: str) -> dict[str, affine.AffineCodes]:
  """Shapes of the codes that calibration makes, by leaf, on the devices."""
  program, *args = _calibration(job, name)
  return {leaf: calibration.place_codes(leaf_codes, job.recorder.place)
          for leaf, leaf_codes in program.eval_shape(*args).items()}


def _calibration(job: Job, name: str) -> tuple[Any, ...]:
  """The program, and what it is given."""
  return (calibration.encode_layers, job.model.config, quant.find(name),
          job.model.params, *recorder_lib.shapes_of(job.windows))


def _decoded(job: Job, name: str, calls: int) -> types.Params:
  """The model from codes, which lie on the host until they are wanted."""
  flat = tree_paths.flatten(job.model.params)
  return tree_paths.unflatten(flat | {
      leaf: job.recorder.call(
          f'{name} of {leaf}', calibration.dequantize_leaf, leaf_codes,
          flat[leaf], leaf, calls=calls, held=True)
      for leaf, leaf_codes in codes(job, name).items()})


def gathered(job: Job, calls: int = 1) -> types.Params:
  """The circuit's slices of a model, in its dtype."""
  flat = tree_paths.flatten(job.model.params)
  shapes = jax.eval_shape(param_mask.gather, job.model.params, job.index)
  return tree_paths.unflatten({
      leaf: job.recorder.call(
          f'slices of {leaf}', param_mask.gather_leaf, leaf, flat[leaf],
          job.index, calls=calls) for leaf in tree_paths.flatten(shapes)})


def scattered(job: Job, slices: types.PyTree, calls: int = 1) -> None:
  """Slices put into a model, a leaf at a time; the stage holds the result."""
  flat = tree_paths.flatten(job.model.params)
  for leaf, part in tree_paths.flatten(slices).items():
    job.recorder.call(f'scatter into {leaf}', param_mask.scatter_leaf, leaf,
                      flat[leaf], part, job.index, calls=calls, held=True)
