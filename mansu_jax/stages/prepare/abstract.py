"""A run as shapes: its data, its model without weights, and a drawn circuit.

The `programs` modules of the stages take an `AbstractRun` and list what the
real run would compile and call.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from mansu_jax.models import calibration
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models.io import loading
from mansu_jax.runtime import programs
from mansu_jax.stages.prepare import inputs as inputs_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractRun:
  """What a run's programs depend on.

  Attributes:
    config: the run's.
    inputs: its data.
    model: the base; params are shapes with shardings.
    circuit: of the size of the run's circuit.
    index: of the circuit, shapes.
    replacement_masks: of the circuit, shapes.
    placer: gives shapes their shardings.
  """

  config: run_config.RunConfig
  inputs: inputs_lib.Inputs
  model: loading.LoadedModel
  circuit: graph.Circuit
  index: param_mask.CircuitIndex
  replacement_masks: types.Params
  placer: programs.Placer

  @property
  def frozen(self) -> types.PyTree:
    """The pytree that a training step does not train."""
    return {'params': self.model.params, 'index': self.index,
            'replacement_masks': self.replacement_masks}

  @functools.cached_property
  def calibration_windows(self) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, T] and mask of the calibration text."""
    return calibration.choose_windows(
        self.inputs.calibration, self.model.tokenizer,
        most_tokens=self.config.eval.calibration_tokens)


def make(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: types.Tokenizer,
    placer: programs.Placer) -> AbstractRun:
  """The run of a config on a model of which only the shapes exist."""
  circuit = draw_circuit(config, shapes)
  dtype = jnp.dtype(config.export_dtype)
  params = tree_paths.map_named(
      lambda leaf, x: placer.shard(
          jax.ShapeDtypeStruct(x.shape, dtype), layout.AXES[leaf]),
      decoder.abstract(shapes))
  return AbstractRun(
      config=config, inputs=inputs,
      model=loading.LoadedModel(shapes, params, tokenizer, {}),
      circuit=circuit, placer=placer,
      index=placer.replicate(param_mask.make_index(circuit)),
      replacement_masks=placer.replicate(
          param_mask.make_replacement_masks(circuit)))


def draw_circuit(
    config: run_config.RunConfig, shapes: model_config.ModelConfig
) -> graph.Circuit:
  """A circuit of the run's size, selected by random scores.

  Scores grow with a node's number of weights, so that every kind of node gets
  the same share of its weights.
  """
  rng, costs = np.random.default_rng(config.seed), graph.costs(shapes)
  means = {kind: costs[kind] * rng.normal(size=size)
           for kind, size in graph.shapes(shapes).items()}
  return select.choose(
      means, config.attribution.level, config.circuit, shapes)[1]
