"""Quantizes a model with calibration text, layer by layer.

The hidden states of the text pass through the layers. Each matrix is quantized
on the inputs that the already quantized matrices produce, including those of
its own layer (q, k, v; o; gate, up; down). This is AutoGPTQ's
`true_sequential`; AutoAWQ uses the inputs of the unquantized model instead.
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
from mansu_jax.models import places as places_lib
from mansu_jax.quant import affine
from mansu_jax.quant import calibrated
from mansu_jax.quant import layout as quant_layout
from mansu_jax.quant import simulate
from mansu_jax.runtime import sharding

_BATCH_TOKENS = 1024  # Tokens per batch.
_NOT_CLIPPED = ('attn/q', 'attn/k')  # Their errors multiply; as in AutoAWQ.

# Layout of one layer of each quantized leaf, by name within the layer.
_LAYOUTS = {name.removeprefix('layers/'): leaf_layout.unbatched()
            for name, leaf_layout in layout.MATRICES.items()}


def choose_windows(
    documents: Sequence[text_lib.TextDocument],
    tokenizer: tokenization.Tokenizer, *, window: int = 128,
    most_tokens: int = 4096) -> tuple[np.ndarray, np.ndarray]:
  """Selects calibration windows, evenly spaced over the documents.

  Args:
    documents: General text that no later measurement uses.
    tokenizer: A transformers tokenizer.
    window: Tokens per window.
    most_tokens: Most tokens in all windows; at least one window is selected.

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
  """Quantizes the matrices of all layers; compiles once per shape and scheme.

  Memory holds the hidden states of the text and, for one layer at a time, the
  inputs of its matrices (at most [n, T, F]) and their second moments (at most
  [F, F]), all in float32.

  Args:
    config: Config of the model.
    params: Params of the model, on devices or the host.
    tokens: Calibration windows, right-padded.
    real: True at tokens, False at padding.
    scheme: Calibrated scheme or its name.

  Returns:
    Codes by leaf name as in `layout.MATRICES`, stacked over layers, in torch
    order. They take little more than one byte per weight.

  Raises:
    ValueError: the scheme is unknown; the windows have no token, another shape
      than `real`, or ids outside the vocabulary; weights are not finite; or
      float32 cannot factor a second moment.
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
  """Decodes a quantized model.

  Args:
    params: Params that were quantized. They give the dtypes, and the leaves
      without codes.
    codes: Result of `encode`, on devices or the host.

  Returns:
    Params of the quantized model.
  """
  flat = tree_paths.flatten(params)
  return tree_paths.unflatten(flat | {
      name: dequantize_leaf(
          place_codes(leaf_codes, sharding.shard), flat[name], name)
      for name, leaf_codes in codes.items()})


def place_codes(
    codes: affine.AffineCodes, put: Callable[[Any, str], Any]
) -> affine.AffineCodes:
  """Shards the codes of a stack of matrices by rows.

  Args:
    codes: Arrays [L, out, ...] and [L, in], or their shapes.
    put: `(array, axis letters) -> array`, such as `sharding.shard`.
  """
  letters = affine.AffineCodes('LR.', 'LR.', 'LR.', 'L.', 'L.')
  return affine.AffineCodes(*(
      x if x is None else put(x, axes) for x, axes in zip(codes, letters)))


@functools.partial(jax.jit, static_argnames='name')
def dequantize_leaf(
    codes: affine.AffineCodes, leaf: types.Array, name: str) -> types.Array:
  """Decodes a stack of matrices in the leaf's memory order and dtype."""
  def decode(codes):  # One matrix at a time limits float32 temporaries.
    weights = quant_layout.from_rows(
        affine.decode(codes), layout.MATRICES[name].unbatched(),
        leaf.shape[1:]).astype(leaf.dtype)
    return sharding.constrain(weights, layout.AXES[name][1:])

  return sharding.constrain(lax.map(decode, codes), layout.AXES[name])


def _check_windows(
    tokens: np.ndarray, real: np.ndarray, vocab_size: int) -> None:
  if np.ndim(tokens) != 2 or np.shape(tokens) != np.shape(real):
    raise ValueError(
        f'Calibration tokens have shape {np.shape(tokens)} and their mask'
        f' {np.shape(real)}; wanted [n, T] for both. Pass the result of'
        ' choose_windows.')
  if not np.any(real):
    raise ValueError(
        'The calibration windows have no token; wanted some text. Give text'
        ' files.')
  if np.min(tokens) < 0 or np.max(tokens) >= vocab_size:
    raise ValueError(
        f'Calibration tokens range from {np.min(tokens)} to {np.max(tokens)};'
        f' wanted ids from 0 to {vocab_size - 1}. Use the tokenizer of the'
        ' model.')


def _check_finite(
    codes: dict[str, affine.AffineCodes],
    scheme: calibrated.CalibratedScheme) -> None:
  bad = []  # (layer, index of the matrix in the layer, name)
  for index, name in enumerate(layout.matrices_of(codes)):
    floats = [x for x in (codes[name].scale, codes[name].divisor)
              if x is not None]
    finite = np.all([jnp.isfinite(x).reshape(len(x), -1).all(1)
                     for x in floats], axis=0)
    bad += [(layer, index, name) for layer in np.flatnonzero(~finite)]
  if bad:
    layer, _, name = min(bad)
    raise ValueError(
        f'{scheme.name} gave non-finite weights of {name} in layer {layer};'
        ' wanted finite weights. The second moment of the inputs has no'
        ' Cholesky factor in float32, or an activation overflows. Increase the'
        f' damping ({scheme.damping}) or give more calibration text.')


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode_layers(
    config: config_lib.ModelConfig, scheme: calibrated.CalibratedScheme,
    params: types.Params, tokens: types.Array, real: types.Array
) -> dict[str, affine.AffineCodes]:
  """The compiled part of `encode`, without its checks."""
  length = tokens.shape[1]
  places = places_lib.find(
      config, jnp.arange(length)[None], places_lib.causal(length))
  x = decoder.embed(config, params, tokens).astype(jnp.float32)

  def quantize_layer(x, numbered):
    number, weights = numbered
    layer = _Layer(config, scheme, weights, real)
    streams = layer.attend(x, places.of_layer(config, number))
    return layer.feed_forward(*streams), layer.codes

  _, codes = lax.scan(
      quantize_layer, x, (jnp.arange(config.num_layers), params['layers']))
  return {f'layers/{name}': leaf_codes for name, leaf_codes in codes.items()}


class _Layer:
  """Quantizes and runs one layer within one trace.

  Attributes:
    weights: Params of the layer; quantized matrices replace the originals.
    codes: Codes of the matrices quantized so far.
  """

  def __init__(self, config, scheme, weights, real):
    self.weights: types.Params = weights
    self.codes: dict[str, affine.AffineCodes] = {}
    self._config, self._scheme, self._real = config, scheme, real

  def attend(self, x, places):
    """Quantizes q, k, v, o.

    Returns:
      The streams [n, T, D] that the MLP reads, and that it adds to.
    """
    cfg = self._config
    normed = layers_lib.norm(cfg, self.weights, 'attn_norm', x)
    self._quantize(('attn/q', 'attn/k', 'attn/v'), normed)
    heads = self._run('attn', lambda attn, row: layers_lib.attend_projected(
        cfg, attn, [layers_lib.project(attn, name, row) for name in 'qkv'],
        places), normed)
    # If query heads share a value head, v cannot absorb the scales of o.
    self._quantize(
        ('attn/o',), heads.reshape(*x.shape[:2], -1),
        foldable=cfg.num_heads == cfg.num_kv_heads)
    middle = x + layers_lib.attn_adds(cfg, self.weights, heads)
    return layers_lib.mlp_reads(cfg, x, middle), middle

  def feed_forward(self, x, middle):
    """Quantizes the MLP's matrices; returns the next residual stream."""
    cfg = self._config
    normed = layers_lib.norm(cfg, self.weights, 'mlp_norm', x)
    self._quantize([name for name in ('mlp/gate', 'mlp/up')
                    if f'layers/{name}' in layout.of_model(cfg)], normed)
    hidden = self._run(
        'mlp', functools.partial(layers_lib.mlp_hidden, cfg), normed)
    self._quantize(('mlp/down',), hidden)
    return middle + layers_lib.mlp_adds(cfg, self.weights, hidden)

  def _run(self, part, function, x):
    """What a function of a part's weights makes of [n, T, D], by row batch."""
    rows = max(1, _BATCH_TOKENS // x.shape[1])
    return lax.map(lambda row: function(self.weights[part], row[None])[0], x,
                   batch_size=min(rows, len(x)))

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
  """Second moment and mean magnitude of the inputs at real tokens."""
  x = jnp.where(real[..., None], inputs, 0).reshape(-1, inputs.shape[-1])
  count = jnp.sum(real, dtype=jnp.float32)
  moment = jnp.matmul(x.T, x, precision=lax.Precision.HIGHEST)
  return calibrated.InputStatistics(
      moment / count, jnp.sum(jnp.abs(x), axis=0) / count)
