"""Rotary positions (Su et al., 2021): frequencies, tables and rotation."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.models import config as config_lib

Array = types.Array
Tables = tuple[Array, Array]


def frequencies(
    config: config_lib.ModelConfig, kind: config_lib.LayerKind) -> np.ndarray:
  """Angle per position of each rotary pair in radians, float32 [H / 2]."""
  found, scaling = _unscaled(config, kind.rope_theta), kind.rope_scaling
  if scaling is not None and scaling.kind == 'linear':
    found = found / scaling.factor
  elif scaling is not None:
    found = found * llama3_shrinkage(config)
  return found.astype(np.float32)


def llama3_shrinkage(config: config_lib.ModelConfig) -> np.ndarray:
  """Factors of `llama3` scaling for each frequency, float64 [H / 2]."""
  scaling = config.rope_scaling
  # Divides fully below the low band and not at all above the high band.
  turns = scaling.original_max_position * _unscaled(
      config, config.rope_theta) / (2 * math.pi)
  width = scaling.high_freq_factor - scaling.low_freq_factor
  keep = np.clip((turns - scaling.low_freq_factor) / width, 0.0, 1.0)
  return keep + (1.0 - keep) / scaling.factor


def _unscaled(config: config_lib.ModelConfig, theta: float) -> np.ndarray:
  return theta**-(np.arange(0, config.d_head, 2) / config.d_head)


def tables(
    config: config_lib.ModelConfig,
    positions: Array,  # [B, T]
    kind: config_lib.LayerKind,
) -> Tables:
  """Cosines and sines, each float32 [B, T, 1, H / 2]."""
  angles = positions.astype(jnp.float32)[..., None, None]
  angles = angles * frequencies(config, kind)[None, None, None]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Array,  # [B, T, N, H]
    of: Tables,  # each [B, T, 1, H / 2]
) -> Array:
  """Turns queries or keys by their positions; pairs are (h, h + H / 2)."""
  cos, sin = of
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1)
  return out.astype(x.dtype)
