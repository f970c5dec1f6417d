"""Named places in the decoder where activations are read or perturbed."""

from __future__ import annotations

import enum


class Site(enum.StrEnum):
  """A tap point of every layer, with the shape found there.

  MLP_HIDDEN [B, T, F]: act(gate) * up, the input of the down projection.
  HEAD_OUT [B, T, N, H]: attention output per query head, before W_O.
  MLP_OUT [B, T, D]: what the MLP adds to the residual stream.
  ATTN_OUT [B, T, D]: what attention adds to the residual stream.
  RESIDUAL [B, T, D]: the residual stream after the layer.
  """

  MLP_HIDDEN = 'mlp_hidden'
  HEAD_OUT = 'head_out'
  MLP_OUT = 'mlp_out'
  ATTN_OUT = 'attn_out'
  RESIDUAL = 'residual'


# Where in the variable collections a site's value lives.
MODULE_PATHS = {
    Site.MLP_HIDDEN: ('layers', 'mlp'),
    Site.HEAD_OUT: ('layers', 'attn'),
    Site.MLP_OUT: ('layers',),
    Site.ATTN_OUT: ('layers',),
    Site.RESIDUAL: ('layers',),
}


def site_name(layer: int, site: Site) -> str:
  """Name of a site in one layer, for example `layer_3.mlp_hidden`."""
  return f'layer_{layer}.{Site(site)}'
