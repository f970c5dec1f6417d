"""The one decoder: scanned layers, plain-dict params, taps and circuits.

Params are the Linen `params` collection as a plain dict; leaf names joined
with '/' (weights input-first, layers stacked on a leading L):

    embed [V, D]           final_norm [D]       lm_head [V, D] when untied
    layers/attn_norm [L, D]                     layers/mlp_norm [L, D]
    layers/attn/q [L, D, N, H]                  layers/attn/k, v [L, D, K, H]
    layers/attn/o [L, N, H, D]
    layers/mlp/gate, up [L, D, F]               layers/mlp/down [L, F, D]

The optional `circuit` holds weights lifted out of a frozen base, so that
their gradient has the circuit's size and no full weight gradient exists. It
covers C layers, from `circuit_start` on:

    layers/mlp/gate, up, down [C, n, D]         layers/mlp/keep [C, F]
    layers/attn/q [C, m, D, H], o [C, m, H, D]
    layers/attn/head_onehot [C, m, N]
    layers/attn/k, v [C, c, D, H]               layers/attn/kv_onehot [C, c, K]

`keep` is 0 at lifted neurons and 1 elsewhere; a one-hot row is zero where its
slice is padding, and padded slices are zero. Any of the three groups (mlp;
q, o, head_onehot; k, v, kv_onehot) may be absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import layers
from mansu_jax.models import circuit_layers
from mansu_jax.models import sites as sites_lib
from mansu_jax.runtime import sharding

Array = types.Array
Params = types.Params
ModelConfig = config_lib.ModelConfig
Site = sites_lib.Site


class Decoder(nn.Module):
  """A Llama-family decoder up to the final norm.

  Attributes:
    config: shapes and constants.
    remat: recompute each layer in the backward pass instead of storing it.
    sites: tap points to sow (`intermediates`) and perturb (`perturbations`);
      a site that is not listed costs nothing.
    dtype: compute dtype; norms, softmax and rotary positions stay float32.
  """

  config: ModelConfig
  remat: bool = False
  sites: tuple[Site, ...] = ()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
      self,
      tokens: Array | None,  # [B, T] int32
      *,
      embeddings: Array | None = None,  # [B, T, D]
      positions: Array | None = None,  # [B, T]
      attention_mask: Array | None = None,  # [B, T, S] bool
  ) -> Array:  # [B, T, D]
    cfg = self.config
    table_shape = (cfg.vocab_size, cfg.d_model)
    init_table = nn.initializers.normal(0.02)
    table = self.param('embed', init_table, table_shape)
    if not cfg.tie_embeddings:
      self.param('lm_head', init_table, table_shape)
    scale = self.param('final_norm', nn.initializers.ones, (cfg.d_model,))
    if embeddings is None:
      embeddings = embed({'embed': table}, tokens)
    x = sharding.constrain_rows(embeddings.astype(self.dtype))
    rotary = layers.rotary_tables(cfg, _positions(positions, x.shape[1]))
    mask = _mask(attention_mask, x.shape[1])
    stack = self._stack(x.shape[0] * x.shape[1])
    x, _ = stack(cfg, self.sites, name='layers')(x, rotary, mask)
    return layers.rms_norm(x, scale, cfg.norm_eps)

  def _stack(self, tokens: int) -> Any:
    block = layers.Block
    if self.remat:
      block = nn.remat(
          block, prevent_cse=False, policy=circuit_layers.remat_policy(
              self.config, tokens, self.config.num_layers))
    stacked = ('params', 'patches', 'intermediates', 'perturbations')
    return nn.scan(
        block,
        variable_axes={collection: 0 for collection in stacked},
        split_rngs={'params': True},
        in_axes=nn.broadcast,
        length=self.config.num_layers)


def _positions(positions: Array | None, length: int) -> Array:
  return jnp.arange(length)[None] if positions is None else positions


def _mask(attention_mask: Array | None, length: int) -> Array:
  """Returns bool [B or 1, 1, 1, T, S], causal by default."""
  if attention_mask is None:
    attention_mask = jnp.tril(jnp.ones((1, length, length), bool))
  return attention_mask[:, None, None]


def segment_mask(
    positions: Array,  # [B, T] int32, within the segment
    segments: Array,  # [B, T] int32, number of a token's segment in its row
) -> Array:
  """Packed rows: a token sees itself and what precedes it in its segment.

  Returns:
    bool [B, T, S].
  """
  same = segments[:, :, None] == segments[:, None, :]
  before = positions[:, :, None] >= positions[:, None, :]
  return same & before


def embed(
    params: Params,
    tokens: Array,  # [B, T] int32
) -> Array:
  """Token embeddings [B, T, D]; ids outside the vocabulary give NaN."""
  # Of a table that is split over width and vocabulary. Its few rows are put
  # together on every device: less than the table, and rows are split next.
  return sharding.replicate(jnp.take(params['embed'], tokens, axis=0))


def unembed(
    params: Params,
    hidden: Array,  # [..., D], after the final norm
) -> Array:
  """Logits, float32 [..., V], from `lm_head` or the tied embedding."""
  table = params.get('lm_head', params['embed'])
  return jnp.einsum('...D,VD->...V', hidden, table.astype(hidden.dtype),
                    preferred_element_type=jnp.float32)


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Array | None = None,  # [B, T] int32
    *,
    embeddings: Array | None = None,  # [B, T, D]
    positions: Array | None = None,  # [B, T]
    attention_mask: Array | None = None,  # [B, T, S] bool
    segments: Array | None = None,  # [B, T] int32
    circuit: Params | None = None,
    circuit_start: int | None = None,
    first_layer: int = 0,
    remat: bool = False,
    dtype: Any = jnp.float32,
) -> Array:
  """Runs the decoder; `unembed` its result for logits.

  Args:
    config: static under jit.
    params: full params.
    tokens: ids; give either these or `embeddings`.
    embeddings: input embeddings instead of tokens, or from `run_prefix` the
      residual stream before `first_layer`.
    positions: rotary positions, 0 .. T-1 by default.
    attention_mask: True where query t may attend key s; causal by default. A
      row without any True attends uniformly: mask its loss.
    segments: instead of a mask, where rows hold several sequences each: the
      number of a token's; see `segment_mask`.
    circuit: lifted weights that replace their originals (module docstring).
    circuit_start: the layer of the circuit's first row; static under jit. May
      be left out where the circuit has a row for every layer.
    first_layer: layers below it are not run; static under jit.
    remat: recompute layers in the backward pass.
    dtype: compute dtype.

  Returns:
    Hidden state after the final norm, [B, T, D] in `dtype`.

  Raises:
    ValueError: both or neither of tokens and embeddings, a mask and segments,
      or a circuit whose rows are not layers of the model that are run.
  """
  attention_mask = _seen(
      tokens, embeddings, positions, attention_mask, segments)
  if not jax.tree.leaves(circuit) and not first_layer:
    return Decoder(config, remat=remat, dtype=dtype).apply(
        {'params': params}, tokens, embeddings=embeddings,
        positions=positions, attention_mask=attention_mask)
  x = embed(params, tokens) if embeddings is None else embeddings
  rotary = layers.rotary_tables(config, _positions(positions, x.shape[1]))
  x = circuit_layers.run_layers(
      config, params['layers'], sharding.constrain_rows(x.astype(dtype)),
      rotary, _mask(attention_mask, x.shape[1]), first=first_layer,
      stop=config.num_layers, circuit=circuit and circuit['layers'],
      start=circuit_start, remat=remat)
  return layers.rms_norm(x, params['final_norm'], config.norm_eps)


def run_prefix(
    config: ModelConfig,
    params: Params,
    tokens: Array,  # [B, T] int32
    *,
    layer: int,
    positions: Array | None = None,  # [B, T]
    attention_mask: Array | None = None,  # [B, T, S] bool
    segments: Array | None = None,  # [B, T] int32
    dtype: Any = jnp.float32,
) -> Array:
  """The residual stream before a layer, for `forward` to go on from.

  Models that differ from that layer on only, as before and after an edit, have
  it in common.

  Args:
    config: static under jit.
    params: full params.
    tokens: ids.
    layer: the first layer that is not run; static under jit.
    positions: as in `forward`.
    attention_mask: as in `forward`.
    segments: as in `forward`.
    dtype: compute dtype.

  Returns:
    [B, T, D] in `dtype`.
  """
  attention_mask = _seen(tokens, None, positions, attention_mask, segments)
  rotary = layers.rotary_tables(config, _positions(positions, tokens.shape[1]))
  return circuit_layers.run_layers(
      config, params['layers'], embed(params, tokens).astype(dtype), rotary,
      _mask(attention_mask, tokens.shape[1]), first=0, stop=layer)


def forward_with_taps(
    config: ModelConfig,
    params: Params,
    tokens: Array | None = None,  # [B, T] int32
    *,
    sites: Sequence[Site],
    perturbations: Mapping[Site, Array] | None = None,  # {site: [L, B, T, ...]}
    embeddings: Array | None = None,  # [B, T, D]
    positions: Array | None = None,  # [B, T]
    attention_mask: Array | None = None,  # [B, T, S] bool
    segments: Array | None = None,  # [B, T] int32
    remat: bool = False,
    dtype: Any = jnp.float32,
) -> tuple[Array, dict[Site, Array]]:
  """Runs the decoder and returns the values at the tap sites.

  The gradient with respect to a perturbation of zeros is the gradient at its
  site. Values are those before the perturbation is added.

  Args:
    config: static under jit.
    params: full params.
    tokens: ids; give either these or `embeddings`.
    sites: what to return.
    perturbations: added at their sites, which must be among `sites`.
    embeddings: input embeddings instead of tokens.
    positions: rotary positions, 0 .. T-1 by default.
    attention_mask: True where query t may attend key s; causal by default.
    segments: instead of a mask, as in `forward`.
    remat: recompute layers in the backward pass.
    dtype: compute dtype.

  Returns:
    `(hidden [B, T, D], {site: [L, B, T, ...]})`.

  Raises:
    ValueError: an unknown site, a perturbation off the sites, both or neither
      of tokens and embeddings, or a mask and segments.
  """
  attention_mask = _seen(
      tokens, embeddings, positions, attention_mask, segments)
  sites = _known_sites(sites)
  variables = {'params': params}
  if perturbations:
    variables['perturbations'] = _nest(config, sites, perturbations)
  hidden, state = Decoder(config, remat=remat, sites=sites, dtype=dtype).apply(
      variables, tokens, embeddings=embeddings, positions=positions,
      attention_mask=attention_mask, mutable=['intermediates'])
  return hidden, {s: _sown(state['intermediates'], s) for s in sites}


def forward_patched(
    config: ModelConfig,
    params: Params,
    tokens: Array,  # [B, T] int32
    *,
    patches: Mapping[Site, Mapping[str, Array]],
    positions: Array | None = None,  # [B, T]
    segments: Array | None = None,  # [B, T] int32
) -> Array:
  """Runs the decoder with some nodes' activations replaced.

  Args:
    config: static under jit.
    params: full params.
    tokens: ids.
    patches: by site, `keep` [L, F or N] (nodes above 0 keep their own value)
      and `value` [L, B, T, ...], what the others get.
    positions: rotary positions, 0 .. T-1 by default.
    segments: as in `forward`.

  Returns:
    Hidden state after the final norm, [B, T, D].
  """
  attention_mask = _seen(tokens, None, positions, None, segments)
  tree: dict[str, Any] = {}
  for site, patch in patches.items():
    node = tree
    for key in sites_lib.MODULE_PATHS[site]:
      node = node.setdefault(key, {})
    node[str(site)] = dict(patch)
  return Decoder(config).apply(
      {'params': params, 'patches': tree}, tokens, positions=positions,
      attention_mask=attention_mask)


def _seen(
    tokens: Array | None, embeddings: Array | None, positions: Array | None,
    attention_mask: Array | None, segments: Array | None) -> Array | None:
  """Checks what a forward function is given; returns its mask, if any."""
  if (tokens is None) == (embeddings is None):
    got = 'neither' if tokens is None else 'both'
    raise ValueError(
        f'The decoder got {got} of tokens and embeddings: expected one of'
        ' them. Pass tokens [B, T] or embeddings [B, T, D].')
  if segments is None:
    return attention_mask
  if attention_mask is not None:
    raise ValueError(
        'The decoder got an attention mask and segments: expected one of them'
        ' at most. Leave one out.')
  return segment_mask(_positions(positions, segments.shape[1]), segments)


def _known_sites(sites: Sequence[str]) -> tuple[Site, ...]:
  unknown = [s for s in sites if s not in list(Site)]
  if unknown:
    raise ValueError(
        f'Unknown tap sites {unknown}: expected some of'
        f' {[str(s) for s in Site]}.')
  return tuple(Site(s) for s in sites)


def _nest(
    config: ModelConfig,
    sites: tuple[Site, ...],
    perturbations: Mapping[Site, Array],
) -> dict[str, Any]:
  """Lays perturbations out as the collection; absent sites get a zero."""
  stray = [str(s) for s in perturbations if s not in sites]
  if stray:
    raise ValueError(
        f'Perturbations at {stray}, but the sites are'
        f' {[str(s) for s in sites]}: expected a subset. Add them to `sites`.')
  tree: dict[str, Any] = {}
  for site in sites:
    node = tree
    for key in sites_lib.MODULE_PATHS[site]:
      node = node.setdefault(key, {})
    zero = jnp.zeros((config.num_layers,))
    node[str(site)] = perturbations.get(site, zero)
  return tree


def _sown(intermediates: dict[str, Any], site: Site) -> Array:
  node = intermediates
  for key in sites_lib.MODULE_PATHS[site]:
    node = node[key]
  (value,) = node[str(site)]
  return value


def init(config: ModelConfig, key: Array) -> Params:
  """Random float32 params: normal(0.02) matrices, unit norms."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Decoder(config).init(key, tokens)['params']


@functools.cache  # Tracing takes 0.1 s, and selection asks hundreds of times.
def _abstract(config: ModelConfig) -> Params:
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def abstract(config: ModelConfig) -> Params:
  """The params' shapes and dtypes, in new dicts and on no mesh."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _abstract(config))
