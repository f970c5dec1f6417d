"""The modules of the decoder: attention, MLP and block, with taps.

They add to `layers` what training and attribution need. Modules read the
optional collections `circuit` (see `decoder.py`) and `cache` (see
`cached.py`); without these, they run no extra operations.
"""

from __future__ import annotations

from flax import linen as nn
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import layers
from mansu_jax.models import layout
from mansu_jax.models import places as places_lib
from mansu_jax.models import sites as sites_lib

Array = types.Array
Site = sites_lib.Site


def make_params(
    module: nn.Module, config: config_lib.ModelConfig, part: str
) -> types.Params:
  """Declares the params of a module; see `layout.of_part`."""
  start = {'matrix': nn.initializers.normal(0.02),
           'norm': nn.initializers.constant(1 - config.norm_offset),
           'bias': nn.initializers.zeros}
  return {name: module.param(name, start[leaf.start], shape)
          for name, leaf, shape in layout.of_part(config, part)}


class _Tapped(nn.Module):
  """A module with named activations to read, patch and perturb."""

  config: config_lib.ModelConfig
  sites: tuple[Site, ...] = ()

  def tap(self, site: Site, x: Array) -> Array:
    """Patches, sows and perturbs `x`; by default returns `x` unchanged."""
    patch = self.get_variable('patches', str(site))
    if patch is not None:
      keep = patch['keep'].reshape(1, 1, -1, *(1,) * (x.ndim - 3))
      x = jnp.where(keep > 0, x, patch['value'].astype(x.dtype))
    if site not in self.sites:
      return x
    self.sow('intermediates', str(site), x)
    return self.perturb(str(site), x)

  def circuit(self, name: str) -> Array | None:
    """Leaf of the `circuit` collection, or None."""
    return self.get_variable('circuit', name)


class Attention(_Tapped):
  """Causal grouped-query attention."""

  @nn.compact
  def __call__(
      self,
      x: Array,  # [B, T, D]
      places: places_lib.Places,  # Of this layer.
  ) -> Array:  # [B, T, D]
    cfg = self.config
    attn = make_params(self, cfg, 'layers/attn')
    queries, keys, values = (
        layers.place_heads(
            cfg, attn, name, self._project(attn, name, x), places)
        for name in 'qkv')
    keys = self._remember('keys', keys)
    values = self._remember('values', values)
    out = layers.attend(cfg, queries, keys, values, places.mask)
    return self._project_out(attn, self.tap(Site.HEAD_OUT, out))

  def _project(self, attn: types.Params, name: str, x: Array) -> Array:
    """Projects [B, T, D] to [B, T, N or K, H]; replaces circuit heads."""
    heads = layers.project(attn, name, x)
    weight = self.circuit(name)  # [m, D, H]
    if weight is None:
      return heads
    onehot = self.circuit('head_onehot' if name == 'q' else 'kv_onehot')
    onehot = onehot.astype(x.dtype)  # [m, N]
    circuit_heads = layers.einsum('BTD,mDH->BTmH', x, weight)
    keep = 1 - onehot.sum(0)  # [N]
    return heads * keep[None, None, :, None] + layers.einsum(
        'BTmH,mN->BTNH', circuit_heads, onehot)

  def _remember(self, name: str, new: Array) -> Array:
    """Writes [B, T, K, H] into the cache; returns [B, S, K, H], or `new`."""
    cached = self.get_variable('cache', name)
    if cached is None:
      return new
    start = self.get_variable('cache', 'start')  # [B]
    slots = start[:, None] + jnp.arange(new.shape[1])[None]  # [B, T]
    cached = cached.at[jnp.arange(new.shape[0])[:, None], slots].set(
        new.astype(cached.dtype), mode='drop')
    self.put_variable('cache', name, cached)
    return cached

  def _project_out(self, attn: types.Params, heads: Array) -> Array:
    weight = self.circuit('o')  # [m, H, D]
    if weight is None:
      return layers.project_out(attn, heads)
    onehot = self.circuit('head_onehot').astype(heads.dtype)  # [m, N]
    keep = 1 - onehot.sum(0)  # [N]
    circuit_heads = layers.einsum('BTNH,mN->BTmH', heads, onehot)
    return (
        layers.project_out(attn, heads * keep[None, None, :, None])
        + layers.einsum('BTmH,mHD->BTD', circuit_heads, weight))


class Mlp(_Tapped):
  """The MLP, with a gate or without."""

  @nn.compact
  def __call__(self, x: Array) -> Array:  # [B, T, D] -> [B, T, D]
    mlp = make_params(self, self.config, 'layers/mlp')
    a = self.tap(Site.MLP_HIDDEN, layers.mlp_hidden(self.config, mlp, x))
    keep = self.circuit('keep')  # [F]
    if keep is None:
      return layers.project_down(mlp, a)
    keep = keep.astype(x.dtype)[None, None]
    return (layers.project_down(mlp, a * keep)
            + self._circuit_neurons(mlp, x))

  def _circuit_neurons(self, mlp: types.Params, x: Array) -> Array:
    """Output of the circuit's neurons; padded slices add zero."""
    inputs = [layers.einsum('BTD,nD->BTn', x, self.circuit(name))
              for name in ('gate', 'up') if name in mlp]
    if 'up_bias' in mlp:  # That of the circuit's neurons, in their order.
      nodes, = jnp.nonzero(
          self.circuit('keep') == 0, size=inputs[-1].shape[-1],
          fill_value=self.config.d_ff)
      bias = mlp['up_bias'].at[nodes].get(mode='fill', fill_value=0)
      inputs[-1] += bias[None, None].astype(x.dtype)
    a = layers.activate(self.config, inputs)
    return layers.einsum('BTn,nD->BTD', a, self.circuit('down'))


class Block(_Tapped):
  """One layer: attention and MLP, each with norms and a residual."""

  @nn.compact
  def __call__(
      self,
      x: Array,  # [B, T, D]
      layer: int | Array,  # Its number.
      places: places_lib.Places,  # Of all layers.
  ) -> tuple[Array, None]:
    cfg = self.config
    norms, before = make_params(self, cfg, 'layers'), x
    normed = layers.norm(cfg, norms, 'attn_norm', x)
    out = Attention(cfg, self.sites, name='attn')(
        normed, places.of_layer(cfg, layer))
    out = layers.post_norm(cfg, norms, 'attn', out)
    x = x + self.tap(Site.ATTN_OUT, out)
    normed = layers.norm(
        cfg, norms, 'mlp_norm', layers.mlp_reads(cfg, before, x))
    out = Mlp(cfg, self.sites, name='mlp')(normed)
    out = layers.post_norm(cfg, norms, 'mlp', out)
    x = x + self.tap(Site.MLP_OUT, out)
    return self.tap(Site.RESIDUAL, x), None
