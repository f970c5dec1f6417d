"""LoRA adapters on every matrix of the decoder's layers.

The adapter of a stacked matrix W [L, in.., out..] has the leaves `a` [L, I, R]
and `b` [L, R, O], where I and O are the products of W's input and output axes.
The adapted model has W + scale * (a @ b) in its place. Adapters are nested as
the params are: `layers/attn/q/a`.

References:
  Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021
  (arXiv 2106.09685)
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import layout
from mansu_jax.runtime import sharding


def shapes(params: types.Params, rank: int) -> types.PyTree:
  """Shapes of the adapters, float32.

  Args:
    params: Params of the model, or their shapes.
    rank: R.
  """
  flat, out = tree_paths.flatten(params), {}
  for name, axes in layout.matrices_of(flat).items():
    layers, *sizes = flat[name].shape
    split = len(axes.inp)
    rows, columns = math.prod(sizes[:split]), math.prod(sizes[split:])
    out[f'{name}/a'] = (layers, rows, rank)
    out[f'{name}/b'] = (layers, rank, columns)
  return tree_paths.unflatten({
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in out.items()})


def init(params: types.Params, rank: int, seed: int) -> types.PyTree:
  """Adapters before training: they change nothing, since `b` is 0.

  `a` is Gaussian with variance 1 / I, so that a @ b is about as large as b.

  Args:
    params: Params of the model.
    rank: R.
    seed: Seed of the draw.
  """
  rng = np.random.default_rng([seed, rank])

  def draw(name: str, leaf: jax.ShapeDtypeStruct) -> types.Array:
    values = np.zeros(leaf.shape, np.float32)
    if name.endswith('/a'):
      values = rng.normal(
          scale=leaf.shape[1] ** -0.5, size=leaf.shape).astype(np.float32)
    return sharding.shard(values, '...')  # Whole on every device.

  return tree_paths.map_named(draw, shapes(params, rank))


def add(
    weights: types.Params, adapters: types.PyTree, scale: float
) -> types.Params:
  """The weights of one layer with its adapters, in float32.

  Args:
    weights: Params of a layer, without their leading L.
    adapters: Adapters of the layer, without L.
    scale: See the module docstring.
  """
  flat, found = tree_paths.flatten(weights), tree_paths.flatten(adapters)
  for name in {path.rpartition('/')[0] for path in found}:
    flat[name] = _add(
        flat[name][None], found[f'{name}/a'][None], found[f'{name}/b'][None],
        scale)[0]
  return tree_paths.unflatten(flat)


def _add(w: types.Array, a: types.Array, b: types.Array, scale: float) -> Any:
  """w + scale * a @ b for w [L, ...], a [L, I, R] and b [L, R, O].

  Its batch axis keeps the product out of the activations that
  `circuit_layers.remat_policy` saves, which would be a second model.
  """
  product = jax.lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))))
  return w.astype(a.dtype) + scale * product.reshape(w.shape)


@functools.partial(jax.jit, static_argnames=('scale', 'dtype'))
def merge_leaf(
    w: types.Array,  # [L, ...]
    a: types.Array,  # [L, I, R]
    b: types.Array,  # [L, R, O]
    scale: float,
    dtype: jax.typing.DTypeLike | None = None,
) -> types.Array:
  """A stacked matrix with its adapter; see `merge`."""
  return _add(w, a, b, scale).astype(w.dtype if dtype is None else dtype)


def merge(
    params: types.Params, adapters: types.PyTree, scale: float,
    dtype: jax.typing.DTypeLike | None = None) -> types.Params:
  """The params with their adapters, added in float32.

  Args:
    params: Params of the model; the other leaves are shared.
    adapters: From `init`, after training.
    scale: See the module docstring.
    dtype: Dtype of the adapted matrices; None keeps theirs.
  """
  flat, found = tree_paths.flatten(params), tree_paths.flatten(adapters)
  for name in layout.matrices_of(flat):
    flat[name] = merge_leaf(
        flat[name], found[f'{name}/a'], found[f'{name}/b'], scale, dtype)
  return tree_paths.unflatten(flat)
