"""The decoder: scanned layers, plain-dict params, taps and circuits.

Params are the Linen `params` collection as a plain dict. Weights are
input-first, layers are stacked on a leading L, and leaf names join keys by '/'
(see `layout.LEAVES`):

    embed [V, D]           final_norm [D]       lm_head [V, D] when untied
    layers/attn_norm [L, D]                     layers/mlp_norm [L, D]
    layers/attn/q [L, D, N, H]                  layers/attn/k, v [L, D, K, H]
    layers/attn/o [L, N, H, D]
    layers/mlp/gate, up [L, D, F]               layers/mlp/down [L, F, D]

Some models have embeddings of positions, biases, norms of queries and keys or
of what a layer adds, or no gate.

The optional `circuit` holds weights that replace slices of a frozen base. Their
gradient has the circuit's size, so no full weight gradient exists. The circuit
covers C layers from `circuit_start` on:

    layers/mlp/gate, up, down [C, n, D]         layers/mlp/keep [C, F]
    layers/attn/q [C, m, D, H], o [C, m, H, D]
    layers/attn/head_onehot [C, m, N]
    layers/attn/k, v [C, c, D, H]               layers/attn/kv_onehot [C, c, K]

`keep` is 0 at neurons of the circuit and 1 elsewhere. Padded slices and their
one-hot rows are zero. Each of the three groups (mlp; q, o, head_onehot; k, v,
kv_onehot) is optional.

Example:
  >>> config = config_lib.ModelConfig(
  ...     vocab_size=97, d_model=16, num_layers=2, num_heads=4,
  ...     num_kv_heads=2, d_head=4, d_ff=32)
  >>> params = init(config, jax.random.key(0))
  >>> hidden = forward(config, params, jnp.array([[5, 6, 7]]))
  >>> unembed(config, params, hidden).shape
  (1, 3, 97)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import blocks
from mansu_jax.models import circuit_layers
from mansu_jax.models import config as config_lib
from mansu_jax.models import layers
from mansu_jax.models import layout
from mansu_jax.models import places as places_lib
from mansu_jax.models import sites as sites_lib
from mansu_jax.runtime import sharding

Array = types.Array
Params = types.Params
ModelConfig = config_lib.ModelConfig
Site = sites_lib.Site


class Decoder(nn.Module):
  """A decoder up to the final norm.

  Attributes:
    config: Shapes and constants.
    remat: Whether to recompute each layer in the backward pass.
    sites: Tap points to sow (`intermediates`) and perturb (`perturbations`).
      Other sites add no operations.
    dtype: Compute dtype; norms, softmax and rotary positions stay float32.
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
    weights = blocks.make_params(self, cfg, '')
    if embeddings is None:
      embeddings = embed(cfg, weights, tokens, positions)
    x = sharding.constrain_rows(embeddings.astype(self.dtype))
    places = _places(cfg, positions, attention_mask, x.shape[1])
    stack = self._stack(x.shape[0] * x.shape[1])
    x, _ = stack(cfg, self.sites, name='layers')(
        x, jnp.arange(cfg.num_layers), places)
    return layers.norm(cfg, weights, 'final_norm', x)

  def _stack(self, tokens: int) -> Any:
    block = blocks.Block
    if self.remat:
      block = nn.remat(
          block, prevent_cse=False, policy=circuit_layers.remat_policy(
              self.config, tokens, self.config.num_layers))
    stacked = ('params', 'patches', 'intermediates', 'perturbations')
    return nn.scan(
        block,
        variable_axes={collection: 0 for collection in stacked},
        split_rngs={'params': True},
        in_axes=(0, nn.broadcast),
        length=self.config.num_layers)


def _positions(positions: Array | None, length: int) -> Array:
  return jnp.arange(length)[None] if positions is None else positions


def _places(
    config: ModelConfig, positions: Array | None, mask: Array | None,
    length: int) -> places_lib.Places:
  """Positions 0 .. T-1 and a causal mask by default."""
  return places_lib.find(
      config, _positions(positions, length),
      places_lib.causal(length) if mask is None else mask)


def embed(
    config: ModelConfig,
    params: Params,
    tokens: Array,  # [B, T] int32
    positions: Array | None = None,  # [B, T]; 0 .. T-1 by default
) -> Array:
  """The residual stream [B, T, D] before the first layer.

  These are token embeddings, and those of the positions if a model has them.
  Ids outside the vocabulary give NaN.
  """
  # The table is sharded over width and vocabulary. Replicating its few rows
  # moves less than the table; `split_rows` shards them next.
  rows = sharding.replicate(jnp.take(params['embed'], tokens, axis=0))
  if config.embed_scale != 1:
    rows *= jnp.asarray(config.embed_scale, rows.dtype)
  if config.positions == 'learned':
    rows += sharding.replicate(jnp.take(
        params['positions'], _positions(positions, tokens.shape[1]), axis=0))
  return rows


def unembed(
    config: ModelConfig,
    params: Params,
    hidden: Array,  # [..., D], after the final norm
) -> Array:
  """Logits, float32 [..., V], from `lm_head` or the tied embedding."""
  table = params.get('lm_head', params['embed'])
  logits = jnp.einsum('...D,VD->...V', hidden, table.astype(hidden.dtype),
                      preferred_element_type=jnp.float32)
  return layers.soft_cap(logits, config.logits_soft_cap)


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
    adapters: types.PyTree | None = None,
    adapter_scale: float = 1.0,
    first_layer: int = 0,
    again: circuit_layers.Again | None = None,
    tap: int | None = None,
    remat: bool = False,
    dtype: Any = jnp.float32,
) -> Array | tuple[Array, Array]:
  """Runs the decoder up to the final norm; `unembed` gives logits.

  Args:
    config: Config of the model; static under jit.
    params: Full params.
    tokens: Token ids; give either these or `embeddings`.
    embeddings: Result of `embed` instead of tokens, or of `run_prefix` with
      `first_layer`.
    positions: Positions of the tokens; 0 .. T-1 by default.
    attention_mask: True where query t may attend to key s; causal by default. A
      row without True attends uniformly: mask its loss.
    segments: Segment number of each token in packed rows, instead of a mask;
      see `places.packed`.
    circuit: Weights that replace slices of `params` (see the module docstring).
    circuit_start: Layer of its first row, if it lacks layers; static under jit.
    adapters: LoRA adapters of the matrices (see `lora`).
    adapter_scale: Factor of their products.
    first_layer: First layer to run; static under jit.
    again: With a circuit: rows to run again with one layer unedited; their
      results follow the others.
    tap: A layer to read, if no rows run again; static under jit.
    remat: Whether to recompute layers in the backward pass.
    dtype: Compute dtype.

  Returns:
    Hidden state after the final norm, [B, T, D] in `dtype`; [B + R, T, D] with
    R rows that run again. With `tap`, also the residual stream there.

  Raises:
    ValueError: both or neither of tokens and embeddings are given; a mask and
      segments are; a circuit layer, or the layer to read, is not among the
      layers to run; or the layer to run again is not one of the circuit's.
  """
  attention_mask = _resolve_mask(
      tokens, embeddings, positions, attention_mask, segments)
  if not jax.tree.leaves(circuit) and adapters is None and not first_layer:
    hidden, found = forward_with_taps(
        config, params, tokens, embeddings=embeddings, positions=positions,
        attention_mask=attention_mask, remat=remat, dtype=dtype,
        sites=() if tap is None else (Site.RESIDUAL,))
    return hidden if tap is None else (hidden, found[Site.RESIDUAL][tap])
  x = embeddings
  if x is None:
    x = embed(config, params, tokens, positions)
  x = circuit_layers.run_layers(
      config, params['layers'], sharding.constrain_rows(x.astype(dtype)),
      _places(config, positions, attention_mask, x.shape[1]),
      first=first_layer, stop=config.num_layers,
      circuit=circuit and circuit['layers'], start=circuit_start,
      adapters=adapters and adapters['layers'], adapter_scale=adapter_scale,
      again=again, tap=tap, remat=remat)
  norm = lambda x: layers.norm(config, params, 'final_norm', x)
  return norm(x) if tap is None else (norm(x[0]), x[1])


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
  """Computes the residual stream before a layer, an input of `forward`.

  Models that differ only from that layer on, for example before and after an
  edit, share this result.

  Args:
    config: Config of the model; static under jit.
    params: Full params.
    tokens: Token ids.
    layer: First layer not to run; static under jit.
    positions: See `forward`.
    attention_mask: See `forward`.
    segments: See `forward`.
    dtype: Compute dtype.

  Returns:
    [B, T, D] in `dtype`.
  """
  attention_mask = _resolve_mask(
      tokens, None, positions, attention_mask, segments)
  return circuit_layers.run_layers(
      config, params['layers'],
      embed(config, params, tokens, positions).astype(dtype),
      _places(config, positions, attention_mask, tokens.shape[1]), first=0,
      stop=layer)


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
  """Runs the decoder and returns the activations at tap sites.

  The gradient with respect to a zero perturbation is the gradient at its site.
  Returned activations exclude it.

  Args:
    config: Config of the model; static under jit.
    params: Full params.
    tokens: Token ids; give either these or `embeddings`.
    sites: Sites to return.
    perturbations: Values to add at sites, which must be among `sites`.
    embeddings: Result of `embed` instead of tokens.
    positions: Positions of the tokens; 0 .. T-1 by default.
    attention_mask: True where query t may attend to key s; causal by default.
    segments: Segment numbers instead of a mask; see `forward`.
    remat: Whether to recompute layers in the backward pass.
    dtype: Compute dtype.

  Returns:
    `(hidden [B, T, D], {site: [L, B, T, ...]})`.

  Raises:
    ValueError: a site is unknown, a perturbation is not at one of `sites`, both
      or neither of tokens and embeddings are given, or a mask and segments are.
  """
  attention_mask = _resolve_mask(
      tokens, embeddings, positions, attention_mask, segments)
  sites = sites_lib.parse(sites)
  variables = {'params': params}
  if perturbations:
    variables['perturbations'] = _perturbations(config, sites, perturbations)
  hidden, state = Decoder(config, remat=remat, sites=sites, dtype=dtype).apply(
      variables, tokens, embeddings=embeddings, positions=positions,
      attention_mask=attention_mask, mutable=['intermediates'])
  return hidden, {s: sites_lib.sown(state['intermediates'], s) for s in sites}


def forward_patched(
    config: ModelConfig,
    params: Params,
    tokens: Array,  # [B, T] int32
    *,
    patches: Mapping[Site, Mapping[str, Array]],
    positions: Array | None = None,  # [B, T]
    segments: Array | None = None,  # [B, T] int32
) -> Array:
  """Runs the decoder and replaces the activations of some nodes.

  Args:
    config: Config of the model; static under jit.
    params: Full params.
    tokens: Token ids.
    patches: For each site, `keep` [L, F or N], above 0 at nodes that are not
      replaced, and `value` [L, B, T, ...], the replacements.
    positions: Positions of the tokens; 0 .. T-1 by default.
    segments: See `forward`.

  Returns:
    Hidden state after the final norm, [B, T, D].
  """
  attention_mask = _resolve_mask(tokens, None, positions, None, segments)
  tree = sites_lib.nest({site: dict(patch) for site, patch in patches.items()})
  return Decoder(config).apply(
      {'params': params, 'patches': tree}, tokens, positions=positions,
      attention_mask=attention_mask)


def _resolve_mask(
    tokens: Array | None, embeddings: Array | None, positions: Array | None,
    attention_mask: Array | None, segments: Array | None) -> Array | None:
  """Checks inputs; returns the attention mask, None if causal."""
  if (tokens is None) == (embeddings is None):
    got = 'neither' if tokens is None else 'both'
    raise ValueError(
        f'The decoder got {got} of tokens and embeddings; wanted one. Pass'
        ' tokens [B, T] or embeddings [B, T, D].')
  if segments is None:
    return attention_mask
  if attention_mask is not None:
    raise ValueError(
        'The decoder got an attention mask and segments; wanted at most one.'
        ' Leave one out.')
  return places_lib.packed(
      _positions(positions, segments.shape[1]), segments)


def _perturbations(
    config: ModelConfig,
    sites: tuple[Site, ...],
    perturbations: Mapping[Site, Array],
) -> dict[str, Any]:
  """Nests perturbations like the collection; other sites get zeros."""
  unlisted = [str(s) for s in perturbations if s not in sites]
  if unlisted:
    raise ValueError(
        f'Perturbations at {unlisted}, but the sites are'
        f' {[str(s) for s in sites]}; wanted a subset. Add them to `sites`.')
  zero = jnp.zeros((config.num_layers,))
  return sites_lib.nest({s: perturbations.get(s, zero) for s in sites})


def init(config: ModelConfig, key: Array) -> Params:
  """Random float32 params: normal(0.02) matrices, unit norms."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Decoder(config).init(key, tokens)['params']


def abstract(config: ModelConfig) -> Params:
  """Shapes and dtypes of the params, in new dicts and without sharding."""
  return tree_paths.unflatten({
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in layout.shapes(config).items()})
