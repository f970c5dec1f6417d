"""Quantized weights without a quantized model: encode, decode, keep the dtype.

Evaluating the result is evaluating the quantized model, since its matrix
products run on decoded weights.
"""

from __future__ import annotations

from collections.abc import Collection
import functools
import math

import jax
import jax.numpy as jnp

from mansu_jax.quant import blocking
from mansu_jax.quant import extremes
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes

PyTree = leaves.PyTree


def fake_quantize(
    params: PyTree, scheme: str | scheme_lib.Scheme, layout: PyTree, *,
    donate: Collection[str] = ()) -> PyTree:
  """Replaces each weight by its value after quantization.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> layout = {'w': quant.BlockLayout(memory='DF', out='F', inp='D')}
    >>> params = {'w': jnp.array([[1.0, 0.5], [0.1, -0.3]])}
    >>> print(quant.fake_quantize(params, 'int4_g128', layout)['w'])
    [[ 1.          0.5       ]
     [ 0.14285715 -0.2857143 ]]

  Args:
    params: any pytree of floating-point weights.
    scheme: a scheme or its name.
    layout: a tree like `params` of `BlockLayout`; None leaves a leaf alone.
    donate: names of leaves that give their memory to the result, as with
      `jax.jit`: they cannot be used again.

  Returns:
    A tree like `params`, same dtypes. Its gradient is zero, as that of a
    staircase: for a straight-through one take it at the result.

  Raises:
    ValueError: an unknown scheme; trees of different structure; a leaf with a
      layout that is empty, not floating-point, of another number of axes, or
      (outside jit) holds NaN or infinity.
  """
  scheme = schemes.get(scheme)
  layout = check_quantizable(params, layout, scheme)
  quantize = lambda name, leaf, leaf_layout: (
      leaf if leaf_layout is None
      else _fake_quantize_leaf(leaf, scheme, leaf_layout, name in donate))
  return leaves.map_named(quantize, params, layout)


def check_quantizable(
    params: PyTree, layout: PyTree,
    scheme: str | scheme_lib.Scheme | None = None) -> PyTree:
  """Raises ValueError, naming the leaf, for what cannot be quantized.

  Args:
    params: any pytree of weights.
    layout: a tree like it of `BlockLayout` and None.
    scheme: also checks that it, or the one of this name, can cut the rows of
      each leaf.

  Returns:
    The layout in the structure of the params; see `leaves.align`.
  """
  scheme = scheme and schemes.get(scheme)
  layout = leaves.align(layout, params, 'The layout')
  others = leaves.named(params)
  for name, leaf_layout in leaves.named(layout).items():
    if leaf_layout is not None:
      _check_leaf(others[name], name, leaf_layout, scheme)
  return layout


def _check_leaf(leaf, name, layout, scheme):
  leaves.check_floating(leaf, name, 'Quantization')
  if not isinstance(layout, layout_lib.BlockLayout):
    raise ValueError(
        f'The layout of {name!r} is {layout!r}; wanted a quant.BlockLayout, or'
        ' None to leave the leaf alone.')
  try:
    *_, columns = layout_lib.rows_shape(jnp.shape(leaf), layout)
    if scheme is not None:
      scheme.for_columns(columns)
  except ValueError as error:
    raise ValueError(f'Parameter {name!r}: {error}') from error
  if not math.prod(jnp.shape(leaf)):
    raise ValueError(
        f'Parameter {name!r} of shape {jnp.shape(leaf)} is empty: there is'
        ' nothing to quantize; give it None in the layout.')
  if leaves.is_concrete(leaf):
    leaves.check_finite(leaf, name, 'Parameter')


def _fake_quantize_leaf(leaf, scheme, layout, donate):
  if leaves.is_concrete(leaf) and not leaves.count_now(any_extreme, leaf):
    scheme = scheme.ordinary()
  run = fake_quantize_in_place if donate else fake_quantize_leaf
  return leaves.elementwise(lambda x: run(x, scheme, layout), leaf, leaf)


_jit = functools.partial(
    jax.jit, blocking.fake_quantize, static_argnames=('scheme', 'layout'))
# The program of one leaf; scheme and layout are static.
fake_quantize_leaf = _jit()
fake_quantize_in_place = _jit(donate_argnames='leaf')


@jax.jit
def any_extreme(leaf: jax.Array) -> jax.Array:
  """Whether some weight's block could have a scale of extreme size."""
  return extremes.any_extreme(leaf.astype(jnp.float32))
