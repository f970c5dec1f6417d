"""Tap points of the decoder, where activations are read or perturbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import enum
from typing import Any


class Site(enum.StrEnum):
  """A tap point of each layer, with the shape of its activations.

  MLP_HIDDEN [B, T, F]: act(gate) * up, the input of the down projection.
  HEAD_OUT [B, T, N, H]: Attention output of each query head, before W_O.
  MLP_OUT [B, T, D]: Output of the MLP, added to the residual stream.
  ATTN_OUT [B, T, D]: Output of attention, added to the residual stream.
  RESIDUAL [B, T, D]: Residual stream after the layer.
  """

  MLP_HIDDEN = 'mlp_hidden'
  HEAD_OUT = 'head_out'
  MLP_OUT = 'mlp_out'
  ATTN_OUT = 'attn_out'
  RESIDUAL = 'residual'


# Path of each site in the variable collections.
MODULE_PATHS = {
    Site.MLP_HIDDEN: ('layers', 'mlp'),
    Site.HEAD_OUT: ('layers', 'attn'),
    Site.MLP_OUT: ('layers',),
    Site.ATTN_OUT: ('layers',),
    Site.RESIDUAL: ('layers',),
}


def parse(sites: Sequence[str]) -> tuple[Site, ...]:
  """Converts names to sites; ValueError for an unknown name."""
  unknown = [s for s in sites if s not in list(Site)]
  if unknown:
    raise ValueError(
        f'Unknown tap sites {unknown}; wanted some of'
        f' {[str(s) for s in Site]}. Correct `sites`.')
  return tuple(Site(s) for s in sites)


def nest(values: Mapping[Site, Any]) -> dict[str, Any]:
  """Nests one value per site like a variable collection.

  Example:
    >>> nest({Site.RESIDUAL: 1, Site.MLP_HIDDEN: 2})
    {'layers': {'residual': 1, 'mlp': {'mlp_hidden': 2}}}
  """
  tree: dict[str, Any] = {}
  for site, value in values.items():
    node = tree
    for key in MODULE_PATHS[site]:
      node = node.setdefault(key, {})
    node[str(site)] = value
  return tree


def sown(intermediates: Mapping[str, Any], site: Site) -> Any:
  """The value that the decoder sowed at a site."""
  node = intermediates
  for key in MODULE_PATHS[site]:
    node = node[key]
  (value,) = node[str(site)]
  return value
