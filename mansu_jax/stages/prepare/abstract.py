"""A model as shapes, and a drawn circuit in it.

The `programs` modules of the stages take an `AbstractModel` and list what the
real run would compile and call.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import param_mask
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models.io import loading
from mansu_jax.runtime import programs


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractModel:
  """A base without weights, with a circuit of a run's size.

  Attributes:
    loaded: the base; params are shapes with shardings.
    circuit: a drawn circuit.
    index: of the circuit, shapes.
    replacement_masks: of the circuit, shapes.
    placer: gives shapes their shardings.
  """

  loaded: loading.LoadedModel
  circuit: graph.Circuit
  index: param_mask.CircuitIndex
  replacement_masks: types.Params
  placer: programs.Placer

  @property
  def config(self) -> model_config.ModelConfig:
    """The base's shapes and constants."""
    return self.loaded.config

  @property
  def params(self) -> types.Params:
    """The base's params, as shapes."""
    return self.loaded.params

  @property
  def tokenizer(self) -> types.Tokenizer:
    """The base's tokenizer, or a stub."""
    return self.loaded.tokenizer

  @property
  def frozen(self) -> types.PyTree:
    """The pytree that a training step does not train."""
    return {'params': self.params, 'index': self.index,
            'replacement_masks': self.replacement_masks}


def make(
    shapes: model_config.ModelConfig, tokenizer: types.Tokenizer,
    circuit: graph.Circuit, dtype: str, placer: programs.Placer
) -> AbstractModel:
  """A model of which only the shapes exist.

  Args:
    shapes: the model's config.
    tokenizer: its tokenizer, or a stub.
    circuit: from `draw_circuit`.
    dtype: storage dtype of the params.
    placer: gives shapes their shardings.
  """
  params = tree_paths.map_named(
      lambda leaf, x: placer.shard(
          jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), layout.AXES[leaf]),
      decoder.abstract(shapes))
  return AbstractModel(
      loaded=loading.LoadedModel(shapes, params, tokenizer, {}),
      circuit=circuit, placer=placer,
      index=placer.replicate(param_mask.make_index(circuit)),
      replacement_masks=placer.replicate(
          param_mask.make_replacement_masks(circuit)))


def draw_circuit(
    level: str, options: run_config.CircuitConfig, seed: int,
    shapes: model_config.ModelConfig) -> graph.Circuit:
  """A circuit of a run's size, selected by random scores.

  Scores grow with a node's number of weights, so that every kind of node gets
  the same share of its weights.

  Args:
    level: `--attribution_level`.
    options: budget and layers of the circuit.
    seed: of the scores.
    shapes: the model's config.
  """
  rng, costs = np.random.default_rng(seed), graph.costs(shapes)
  means = {kind: costs[kind] * rng.normal(size=size)
           for kind, size in graph.shapes(shapes).items()}
  return select.choose(means, level, options, shapes)[1]
