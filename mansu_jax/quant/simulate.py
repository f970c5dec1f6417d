"""Fake quantization: weights are encoded and decoded, and keep their dtype.

A quantized model computes its matrix products with decoded weights, so a model
with these weights gives the outputs of the quantized one.
"""

from __future__ import annotations

from collections.abc import Collection
import functools
import math

import jax
import jax.numpy as jnp

from mansu_jax.quant import blocking
from mansu_jax.quant import devices
from mansu_jax.quant import extremes
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes

PyTree = leaves.PyTree


def fake_quantize(
    params: PyTree, scheme: str | scheme_lib.Scheme, layout: PyTree, *,
    donate: Collection[str] = ()) -> PyTree:
  """Replaces each weight by its decoded value after quantization.

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
    layout: a tree like `params` of `BlockLayout`; None leaves a leaf
      unchanged.
    donate: names of leaves whose memory the result may reuse, as in `jax.jit`.
      They cannot be used again.

  Returns:
    A tree like `params` with the same dtypes. Its gradient with respect to the
    params is zero. For a straight-through estimate, differentiate with respect
    to the result.

  Raises:
    ValueError: an unknown scheme; trees of different structure; or a leaf to
      quantize that is empty, is not floating-point, has another number of axes
      than its layout or (outside jit) holds NaN or infinity.
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
  """Raises ValueError, naming the leaf, if a leaf cannot be quantized.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> params = {'w': jnp.ones((2, 33))}
    >>> quant.check_quantizable(params, {'w': quant.TORCH}, 'q4_0')
    Traceback (most recent call last):
      ...
    ValueError: Parameter 'w': q4_0 has blocks of 32 weights, ...

  Args:
    params: any pytree of weights.
    layout: a tree like `params` of `BlockLayout` and None.
    scheme: a scheme or its name; the rows of each leaf must fit its blocks.
      None checks the layout alone.

  Returns:
    The layout in the structure of the params; see `leaves.align`.

  Raises:
    ValueError: see `fake_quantize`.
  """
  scheme = scheme and schemes.get(scheme)
  layout = leaves.align(layout, params, 'The layout')
  others = leaves.flatten(params)
  for name, leaf_layout in leaves.flatten(layout).items():
    if leaf_layout is not None:
      _check_leaf(others[name], name, leaf_layout, scheme)
  return layout


def _check_leaf(leaf, name, layout, scheme):
  leaves.check_floating(leaf, name, 'Quantization')
  if not isinstance(layout, layout_lib.BlockLayout):
    raise ValueError(
        f'The layout of {name!r} is {layout!r}; wanted a quant.BlockLayout, or'
        ' None to leave the leaf unchanged.')
  try:
    *_, columns = layout_lib.rows_shape(jnp.shape(leaf), layout)
    if scheme is not None:
      scheme.for_columns(columns)
  except ValueError as error:
    raise ValueError(f'Parameter {name!r}: {error}') from error
  if not math.prod(jnp.shape(leaf)):
    raise ValueError(
        f'Parameter {name!r} of shape {jnp.shape(leaf)} is empty and cannot be'
        ' quantized; give it None in the layout.')
  if leaves.is_concrete(leaf):
    leaves.check_finite(leaf, name, 'Parameter')


def _fake_quantize_leaf(leaf, scheme, layout, donate):
  if leaves.is_concrete(leaf) and not leaves.count_now(any_extreme, leaf):
    scheme = scheme.ordinary()
  run = fake_quantize_in_place if donate else fake_quantize_leaf
  return devices.elementwise(lambda x: run(x, scheme, layout), leaf, leaf)


_jit = functools.partial(
    jax.jit, blocking.fake_quantize, static_argnames=('scheme', 'layout'))
# Fake quantization of one leaf; the scheme and the layout are static.
fake_quantize_leaf = _jit()
fake_quantize_in_place = _jit(donate_argnames='leaf')


@jax.jit
def any_extreme(leaf: jax.Array) -> jax.Array:
  """Whether a weight is so small or large that its scale may be extreme."""
  return extremes.any_extreme(leaf.astype(jnp.float32))
