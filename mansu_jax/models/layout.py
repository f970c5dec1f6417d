"""The leaves of a model: which there are, their axes, and how they start.

Modules, sharding, quantizers, circuits and files follow from this one table.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.quant import layout as quant_layout

ModelConfig = config_lib.ModelConfig
_BlockLayout = quant_layout.BlockLayout


class Leaf(NamedTuple):
  """One leaf of the params.

  Attributes:
    memory: its axes, in the letters of `sharding.AXIS_RULES`; L is the layer,
      P the position.
    out: of a matrix that a 4-bit deployment quantizes, the axes of the rows of
      torch's [out, in]; '' for the embedding, norms and biases.
    inp: those of the columns.
    start: of its random initialization, `matrix`, `norm` or `bias`.
    exists: whether a model has it.
  """

  memory: str
  out: str = ''
  inp: str = ''
  start: str = 'matrix'
  exists: Callable[[ModelConfig], bool] = lambda config: True


_qkv_bias = lambda config: config.qkv_bias
_out_bias = lambda config: config.out_bias
_head_norms = lambda config: config.qk_norm
_post_norms = lambda config: config.post_norms
_learned = lambda config: config.positions == 'learned'
_norm_bias = lambda config: config.norm == 'layer'

LEAVES = {
    'embed': Leaf('VD'),
    'lm_head': Leaf('VD', exists=lambda config: not config.tie_embeddings),
    'positions': Leaf('PD', exists=_learned),
    'final_norm': Leaf('D', start='norm'),
    'final_norm_bias': Leaf('D', start='bias', exists=_norm_bias),
    'layers/attn_norm': Leaf('LD', start='norm'),
    'layers/attn_norm_bias': Leaf('LD', start='bias', exists=_norm_bias),
    'layers/mlp_norm': Leaf('LD', start='norm'),
    'layers/mlp_norm_bias': Leaf('LD', start='bias', exists=_norm_bias),
    'layers/attn_post_norm': Leaf('LD', start='norm', exists=_post_norms),
    'layers/mlp_post_norm': Leaf('LD', start='norm', exists=_post_norms),
    'layers/attn/q': Leaf('LDNH', out='NH', inp='D'),
    'layers/attn/k': Leaf('LDKH', out='KH', inp='D'),
    'layers/attn/v': Leaf('LDKH', out='KH', inp='D'),
    'layers/attn/o': Leaf('LNHD', out='D', inp='NH'),
    'layers/attn/q_bias': Leaf('LNH', start='bias', exists=_qkv_bias),
    'layers/attn/k_bias': Leaf('LKH', start='bias', exists=_qkv_bias),
    'layers/attn/v_bias': Leaf('LKH', start='bias', exists=_qkv_bias),
    'layers/attn/o_bias': Leaf('LD', start='bias', exists=_out_bias),
    'layers/attn/q_norm': Leaf('LH', start='norm', exists=_head_norms),
    'layers/attn/k_norm': Leaf('LH', start='norm', exists=_head_norms),
    'layers/mlp/gate': Leaf(
        'LDF', out='F', inp='D', exists=lambda config: config.gated),
    'layers/mlp/up': Leaf('LDF', out='F', inp='D'),
    'layers/mlp/down': Leaf('LFD', out='D', inp='F'),
    'layers/mlp/up_bias': Leaf('LF', start='bias', exists=_out_bias),
    'layers/mlp/down_bias': Leaf('LD', start='bias', exists=_out_bias),
}

# Axes of each quantized leaf, in memory and in torch; L is a batch axis.
MATRICES = {
    name: _BlockLayout(memory=leaf.memory, out=leaf.out, inp=leaf.inp)
    for name, leaf in LEAVES.items() if leaf.out}

AXES = {name: leaf.memory for name, leaf in LEAVES.items()}

# Leaf name -> (kind of node that owns its slices, their axis within a layer).
_OWNERS = {'F': 'neurons', 'N': 'heads', 'K': 'kv_heads'}
UNIT_AXIS = {
    name: (kind, own.memory[1:].index(letter))
    for letter, kind in _OWNERS.items()
    for name, own in MATRICES.items() if letter in own.memory}


def of_model(config: ModelConfig) -> dict[str, Leaf]:
  """The leaves that a model has, by name."""
  return {name: leaf for name, leaf in LEAVES.items() if leaf.exists(config)}


def matrices_of(names: Container[str]) -> dict[str, _BlockLayout]:
  """`MATRICES` of a model, from the names of its leaves."""
  return {name: own for name, own in MATRICES.items() if name in names}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of each leaf of a model, by name."""
  sizes = {
      'V': config.vocab_size, 'D': config.d_model, 'L': config.num_layers,
      'N': config.num_heads, 'K': config.num_kv_heads, 'H': config.d_head,
      'F': config.d_ff, 'P': config.max_position}
  return {name: tuple(map(sizes.__getitem__, leaf.memory))
          for name, leaf in of_model(config).items()}


def of_part(
    config: ModelConfig, part: str
) -> Iterator[tuple[str, Leaf, tuple[int, ...]]]:
  """Yields `(name, leaf, shape)` of the leaves directly under a path.

  Args:
    config: Config of the model.
    part: '' for the model, `layers`, or `layers/attn` or `layers/mlp`; under
      `layers`, shapes are those of one layer.
  """
  for path, shape in shapes(config).items():
    parent, _, name = path.rpartition('/')
    if parent == part:
      yield name, LEAVES[path], shape[1:] if part else shape


def block_layout(config: ModelConfig) -> types.PyTree:
  """A tree like the params: a `BlockLayout`, or None if not quantized."""
  return tree_paths.unflatten({
      name: MATRICES.get(name) for name in of_model(config)})
