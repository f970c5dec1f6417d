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
  """Angle per position of each rotary pair in radians, float32 [R / 2].

  R is the number of rotary coordinates of a head.
  """
  found, scaling = _unscaled(config, kind.rope_theta), kind.rope_scaling
  if scaling is None or scaling.kind == 'dynamic':
    pass  # A dynamic scale begins beyond the longest prompt that runs.
  elif scaling.kind == 'linear':
    found = found / scaling.factor
  elif scaling.kind == 'longrope':
    found = found / np.array(scaling.short_factors)
  elif scaling.kind == 'llama3':
    found = found * llama3_shrinkage(config)
  else:
    found = found * _blend(1 - _yarn_ramp(scaling, found), scaling)
  return found.astype(np.float32)


def llama3_shrinkage(config: config_lib.ModelConfig) -> np.ndarray:
  """Factors of `llama3` scaling for each frequency, float64 [R / 2]."""
  scaling = config.rope_scaling
  # Divides fully below the low band and not at all above the high band.
  turns = scaling.original_max_position * _unscaled(
      config, config.rope_theta) / (2 * math.pi)
  width = scaling.high_freq_factor - scaling.low_freq_factor
  keep = np.clip((turns - scaling.low_freq_factor) / width, 0.0, 1.0)
  return _blend(keep, scaling)


def _yarn_ramp(
    scaling: config_lib.RopeScaling, found: np.ndarray) -> np.ndarray:
  """How much of each frequency YaRN divides, from 0 to 1."""
  # log(theta) / (R / 2), between neighbours; a single pair has any spacing.
  spacing = math.log(found[0] / found[1]) if found.size > 1 else 1.0
  pair = lambda turns: math.log(scaling.original_max_position / (
      turns * 2 * math.pi)) / spacing  # That turns so often.
  low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * found.size - 1)
  if low == high:
    high += 0.001  # As transformers does.
  return np.clip((np.arange(found.size) - low) / (high - low), 0.0, 1.0)


def _blend(
    keep: np.ndarray, scaling: config_lib.RopeScaling) -> np.ndarray:
  """Factors of frequencies of which these shares are not divided."""
  return keep + (1.0 - keep) / scaling.factor


def _unscaled(config: config_lib.ModelConfig, theta: float) -> np.ndarray:
  width = config.d_rotary or config.d_head
  return theta**-(np.arange(0, width, 2) / width)


def tables(
    config: config_lib.ModelConfig,
    positions: Array,  # [B, T]
    kind: config_lib.LayerKind,
) -> Tables:
  """Cosines and sines, each float32 [B, T, 1, R / 2]."""
  angles = positions.astype(jnp.float32)[..., None, None]
  angles = angles * frequencies(config, kind)[None, None, None]
  found = jnp.cos(angles), jnp.sin(angles)
  scaling = kind.rope_scaling
  if scaling is None or scaling.attention_factor is None:
    return found
  return tuple(x * scaling.attention_factor for x in found)


def rotate(
    x: Array,  # [B, T, N, H]
    of: Tables,  # each [B, T, 1, R / 2]
) -> Array:
  """Turns queries or keys by their positions; pairs are (r, r + R / 2)."""
  cos, sin = of
  width = 2 * cos.shape[-1]
  first, second = jnp.split(x[..., :width].astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1)
  out = out.astype(x.dtype)
  if width == x.shape[-1]:
    return out
  return jnp.concatenate([out, x[..., width:]], axis=-1)
