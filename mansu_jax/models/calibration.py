"""Quantizes a whole model with calibration text, layer by layer.

The hidden states of the text are carried through the layers. In each, every
matrix is quantized on the inputs that it gets behind all those quantized
before it, in its own layer too (q, k, v; o; gate, up; down): AutoGPTQ's
`true_sequential`. AutoAWQ takes the inputs of the unquantized model instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.data import batching
from mansu_jax.data import tokenization
from mansu_jax.data.readers import text as text_lib
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.models import layers as layers_lib
from mansu_jax.models import layout
from mansu_jax.models import sites as sites_lib
from mansu_jax.quant import affine
from mansu_jax.quant import calibrated
from mansu_jax.quant import layout as quant_layout
from mansu_jax.quant import simulate
from mansu_jax.runtime import sharding

_TOKENS_A_BATCH = 1024
_NOT_CLIPPED = ('attn/q', 'attn/k')  # Errors of both multiply; as in AutoAWQ.

# One layer of each quantized leaf, by its name within the layer.
_LAYOUTS = {name.removeprefix('layers/'): leaf_layout.unbatched()
            for name, leaf_layout in layout.MATRICES.items()}


def choose_windows(
    documents: Sequence[text_lib.TextDocument],
    tokenizer: tokenization.Tokenizer, *, window: int = 128,
    most_tokens: int = 4096) -> tuple[np.ndarray, np.ndarray]:
  """Calibration windows, spread evenly over the documents.

  Args:
    documents: general text, not what is measured afterwards.
    tokenizer: see `tokenization`.
    window: tokens a window.
    most_tokens: tokens in all, at most, but one window at least.

  Returns:
    tokens [n, T] int32 and real [n, T] bool, for `quantize`.

  Raises:
    ValueError: as `batching.text_windows`.
  """
  found = batching.encode_text(documents, tokenizer, window)
  most = min(len(found.tokens), max(1, most_tokens // window))
  chosen = np.linspace(0, len(found.tokens) - 1, most).round().astype(int)
  tokens, length, _ = found.take(chosen)
  return tokens, np.arange(tokens.shape[1])[None] < length[:, None]


def encode(
    config: config_lib.ModelConfig,
    params: types.Params,
    tokens: np.ndarray,  # [n, T] int32
    real: np.ndarray,  # [n, T] bool
    scheme: str | calibrated.CalibratedScheme,
) -> dict[str, affine.AffineCodes]:
  """Codes of the matrices of all layers; compiles once a shape and scheme.

  Holds the text's hidden states, for one layer at a time the inputs of its
  matrices ([n, T, F] the largest) and their second moments ([F, F]), all in
  float32.

  Args:
    config: the model.
    params: its params, on a device or the host.
    tokens: calibration windows, padded on the right.
    real: True at tokens, False at padding.
    scheme: a calibrated scheme or its name.

  Returns:
    Codes by leaf name as in `layout.MATRICES`, stacked over layers, in torch
    order: little over a byte a weight.

  Raises:
    ValueError: an unknown scheme; windows without any token, of other shape
      than `real` or with ids that the model does not know; weights that are
      not finite; or a second moment that float32 cannot factor.
  """
  scheme = calibrated.get(scheme)
  _check_windows(tokens, real, config.vocab_size)
  simulate.check_quantizable(params, layout.block_layout(config))
  codes = encode_layers(
      config, scheme, params, jnp.asarray(tokens), jnp.asarray(real))
  _check_finite(codes, scheme)
  return codes


def dequantize(
    params: types.Params, codes: dict[str, affine.AffineCodes]
) -> types.Params:
  """The params of a quantized model, from its codes.

  Args:
    params: what was quantized; gives dtypes, and all that has no codes.
    codes: as `encode` gives them, on devices or the host.
  """
  flat = tree_paths.flatten(params)
  return tree_paths.unflatten(flat | {
      name: dequantize_leaf(
          place_codes(leaf_codes, sharding.shard), flat[name], name)
      for name, leaf_codes in codes.items()})


def place_codes(
    codes: affine.AffineCodes, put: Callable[[Any, str], Any]
) -> affine.AffineCodes:
  """Codes of a stack of matrices, split as their rows are quantized.

  Args:
    codes: [L, out, ...] and [L, in]; or their shapes.
    put: `sharding.shard` or like it, which gets each with its axes' letters.
  """
  letters = affine.AffineCodes('LR.', 'LR.', 'LR.', 'L.', 'L.')
  return affine.AffineCodes(*(
      x if x is None else put(x, axes) for x, axes in zip(codes, letters)))


@functools.partial(jax.jit, static_argnames='name')
def dequantize_leaf(
    codes: affine.AffineCodes, leaf: types.Array, name: str) -> types.Array:
  """A stack of matrices, decoded as the leaf lies, in its dtype."""
  def decode(codes):  # Of one matrix: float32 is twice what comes of it.
    one = quant_layout.from_rows(
        affine.decode(codes), layout.MATRICES[name].unbatched(),
        leaf.shape[1:]).astype(leaf.dtype)
    return sharding.constrain(one, layout.AXES[name][1:])

  return sharding.constrain(lax.map(decode, codes), layout.AXES[name])


def _check_windows(
    tokens: np.ndarray, real: np.ndarray, vocab_size: int) -> None:
  if np.ndim(tokens) != 2 or np.shape(tokens) != np.shape(real):
    raise ValueError(
        f'Calibration tokens have shape {np.shape(tokens)} and their mask'
        f' {np.shape(real)}: wanted [n, T] for both.')
  if not np.any(real):
    raise ValueError(
        'The calibration windows hold no token: wanted some text that the'
        ' quantized weights shall fit. Give text files.')
  if np.min(tokens) < 0 or np.max(tokens) >= vocab_size:
    raise ValueError(
        f'Calibration tokens run from {np.min(tokens)} to {np.max(tokens)}, but'
        f' the model knows {vocab_size}: wanted ids below that. Use the'
        ' tokenizer of the model.')


def _check_finite(
    codes: dict[str, affine.AffineCodes],
    scheme: calibrated.CalibratedScheme) -> None:
  bad = []  # (layer, place in the layer, name)
  for place, name in enumerate(layout.MATRICES):
    floats = [x for x in (codes[name].scale, codes[name].divisor)
              if x is not None]
    finite = np.all([jnp.isfinite(x).reshape(len(x), -1).all(1)
                     for x in floats], axis=0)
    bad += [(layer, place, name) for layer in np.flatnonzero(~finite)]
  if bad:
    layer, _, name = min(bad)
    raise ValueError(
        f'{scheme.name} gave non-finite weights of {name} in layer {layer}:'
        ' wanted numbers. The second moment of its inputs has no Cholesky'
        ' factor in float32, or an activation overflows. Raise the damping'
        f' ({scheme.damping}) or give more calibration text.')


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode_layers(
    config: config_lib.ModelConfig, scheme: calibrated.CalibratedScheme,
    params: types.Params, tokens: types.Array, real: types.Array
) -> dict[str, affine.AffineCodes]:
  """The program of `encode`, without its checks."""
  length = tokens.shape[1]
  rotary = layers_lib.rotary_tables(config, jnp.arange(length)[None])
  mask = jnp.tril(jnp.ones((length, length), bool))[None, None, None]
  x = decoder.embed(params, tokens).astype(jnp.float32)

  def quantize_layer(x, weights):
    layer = _Layer(config, scheme, weights, real)
    x = layer.attend(x, rotary, mask)
    return layer.feed_forward(x), layer.codes

  _, codes = lax.scan(quantize_layer, x, params['layers'])
  return {f'layers/{name}': leaf_codes for name, leaf_codes in codes.items()}


class _Layer:
  """One layer while it is quantized and run; lives within one trace.

  Attributes:
    weights: the layer's params; matrices are replaced as they are quantized.
    codes: of the matrices quantized so far.
  """

  def __init__(self, config, scheme, weights, real):
    self.weights: types.Params = weights
    self.codes: dict[str, affine.AffineCodes] = {}
    self._config, self._scheme, self._real = config, scheme, real

  def attend(self, x, rotary, mask):
    """Quantizes q, k, v and o; returns the residual stream [n, T, D] after."""
    cfg = self._config
    normed = layers_lib.rms_norm(x, self.weights['attn_norm'], cfg.norm_eps)
    self._quantize(('attn/q', 'attn/k', 'attn/v'), normed)
    attention = layers_lib.Attention(cfg, (sites_lib.Site.HEAD_OUT,))
    heads = self._run(
        attention, 'attn', sites_lib.Site.HEAD_OUT, normed, rotary, mask)
    # Where query heads share a value head, no v can hold the scales of o.
    self._quantize(
        ('attn/o',), heads.reshape(*x.shape[:2], -1),
        foldable=cfg.num_heads == cfg.num_kv_heads)
    return x + jnp.einsum('BTNH,NHD->BTD', heads, self.weights['attn']['o'])

  def feed_forward(self, x):
    """Quantizes gate, up and down; returns the stream [n, T, D] after."""
    cfg = self._config
    normed = layers_lib.rms_norm(x, self.weights['mlp_norm'], cfg.norm_eps)
    self._quantize(('mlp/gate', 'mlp/up'), normed)
    mlp = layers_lib.Mlp(cfg, (sites_lib.Site.MLP_HIDDEN,))
    hidden = self._run(mlp, 'mlp', sites_lib.Site.MLP_HIDDEN, normed)
    self._quantize(('mlp/down',), hidden)
    return x + layers_lib.project_down(hidden, self.weights['mlp']['down'])

  def _run(self, module, part, site, x, *args):
    """What is found at a site of a module, [n, T, ...], some rows at a time."""
    def run_row(row):
      _, state = module.apply(
          {'params': self.weights[part]}, row[None], *args,
          mutable=['intermediates'])
      return state['intermediates'][str(site)][0][0]
    rows = max(1, _TOKENS_A_BATCH // x.shape[1])
    return lax.map(run_row, x, batch_size=min(rows, len(x)))

  def _quantize(
      self, names: Sequence[str], inputs: types.Array, *,
      foldable: bool = True) -> None:
    """Quantizes matrices that share their inputs [n, T, in]."""
    flat = tree_paths.flatten(self.weights)
    rows = [
        quant_layout.to_rows(flat[name], _LAYOUTS[name]).astype(jnp.float32)
        for name in names]
    clippable = [
        np.full(len(r), name not in _NOT_CLIPPED)
        for name, r in zip(names, rows)]
    codes = self._scheme.encode(
        sharding.constrain_rows(jnp.concatenate(rows), 'R'),
        jax.tree.map(sharding.replicate, _statistics(inputs, self._real)),
        foldable=foldable, clippable=jnp.asarray(np.concatenate(clippable)))
    ends = np.cumsum([len(r) for r in rows])[:-1]
    parts = zip(*(jnp.split(x, ends) for x in codes[:3]))
    for name, (code, scale, zero) in zip(names, parts):
      self.codes[name] = codes._replace(code=code, scale=scale, zero=zero)
      values = quant_layout.from_rows(
          affine.decode(self.codes[name]), _LAYOUTS[name], flat[name].shape)
      flat[name] = values.astype(flat[name].dtype)
    self.weights = tree_paths.unflatten(flat)


def _statistics(
    inputs: types.Array,  # [n, T, in]
    real: types.Array,  # [n, T] bool
) -> calibrated.InputStatistics:
  x = jnp.where(real[..., None], inputs, 0).reshape(-1, inputs.shape[-1])
  count = jnp.sum(real, dtype=jnp.float32)
  moment = jnp.matmul(x.T, x, precision=lax.Precision.HIGHEST)
  return calibrated.InputStatistics(
      moment / count, jnp.sum(jnp.abs(x), axis=0) / count)
