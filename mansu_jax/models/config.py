"""Shapes and constants of a decoder, independent of any file format."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

_MOST = 2**31  # Exclusive bound of all counts: indices have 32 bits.

ROPE_KINDS = ('linear', 'llama3')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """Scaling of rotary frequencies beyond the context length of pretraining.

  Attributes:
    kind: `linear` divides all frequencies by `factor`. `llama3` divides low
      frequencies, keeps high frequencies and blends between them (Llama 3.1,
      2024).
    factor: Divisor, at least 1.
    low_freq_factor: For `llama3`: wavelengths longer than
      `original_max_position / low_freq_factor` tokens are divided fully.
    high_freq_factor: For `llama3`: wavelengths shorter than
      `original_max_position / high_freq_factor` tokens are unchanged.
    original_max_position: For `llama3`: context length of pretraining.

  Raises:
    ValueError: a field is missing, out of range or not for this `kind`.
  """

  kind: str
  factor: float
  low_freq_factor: float | None = None
  high_freq_factor: float | None = None
  original_max_position: int | None = None

  def __post_init__(self):
    if self.kind not in ROPE_KINDS:
      raise ValueError(
          f'Rotary scaling {self.kind!r} is not implemented; wanted one of'
          f' {list(ROPE_KINDS)} or none. Use another model.')
    if not 1 <= self.factor < math.inf:
      raise ValueError(
          f'Rotary scaling factor is {self.factor}; wanted a finite number >='
          ' 1. Correct `rope_scaling` in the model config.')
    bands = (self.low_freq_factor, self.high_freq_factor,
             self.original_max_position)
    if self.kind == 'llama3' and None in bands:
      raise ValueError(
          'Rotary scaling `llama3` got (low_freq_factor, high_freq_factor,'
          f' original_max_position) = {bands}; wanted all three. Complete'
          ' `rope_scaling` in the model config.')
    if self.kind == 'llama3' and not (
        0 < bands[0] < bands[1] < math.inf and 0 < bands[2] < _MOST):
      raise ValueError(
          'Rotary scaling `llama3` has (low_freq_factor, high_freq_factor,'
          f' original_max_position) = {bands}; wanted positive numbers, the'
          ' first less than the second. Correct `rope_scaling` in the model'
          ' config.')
    if self.kind != 'llama3' and bands != (None, None, None):
      raise ValueError(
          f'Rotary scaling {self.kind!r} got the llama3 fields {bands};'
          ' wanted none. Remove them from `rope_scaling`.')


class LayerKind(NamedTuple):
  """What a layer's attention has of its own.

  Attributes:
    window: number of last tokens, its own included, that a token reads; 0: all.
    rope_theta: see `ModelConfig`.
    rope_scaling: see `ModelConfig`.
  """

  window: int
  rope_theta: float
  rope_scaling: RopeScaling | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """All that defines a decoder besides its weights; hashable, so static.

  Attributes:
    family: `model_type` of its Hugging Face files; see `families`.
    vocab_size: V, number of tokens.
    d_model: D, width of the residual stream.
    num_layers: L, number of layers.
    num_heads: N, number of query heads.
    num_kv_heads: K, number of key/value heads. Query head n uses key/value head
      n // (N / K).
    d_head: H, width of a head; even, not necessarily D / N.
    d_ff: F, width of the MLP.
    rope_theta: Base of the rotary frequencies.
    rope_scaling: Scaling of the rotary frequencies, or None.
    windows: For each layer, the number of last tokens, its own included, that a
      token reads, or 0 for all; empty if all layers read all tokens.
    qkv_bias: Whether queries, keys and values have a bias.
    qk_norm: Whether queries and keys are normed, head by head, before the
      rotation.
    norm_eps: Constant added to the mean square in each RMSNorm.
    tie_embeddings: Whether the unembedding is the embedding.
    max_position: Context length of the model, in tokens.
    bos_token_id: Token id or None.
    eos_token_id: Token id, several ids, or None.
    pad_token_id: Token id or None.

  Raises:
    ValueError: a field is out of range.

  Example:
    >>> config = ModelConfig(
    ...     vocab_size=97, d_model=16, num_layers=2, num_heads=4,
    ...     num_kv_heads=2, d_head=4, d_ff=32)
    >>> config.tie_embeddings
    False
  """

  family: str = 'llama'
  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  d_head: int
  d_ff: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  windows: tuple[int, ...] = ()
  qkv_bias: bool = False
  qk_norm: bool = False
  norm_eps: float = 1e-5
  tie_embeddings: bool = False
  max_position: int = 2048
  bos_token_id: int | None = None
  eos_token_id: int | tuple[int, ...] | None = None
  pad_token_id: int | None = None

  def __post_init__(self):
    for name in ('vocab_size', 'd_model', 'num_layers', 'num_heads',
                 'num_kv_heads', 'd_head', 'd_ff', 'max_position'):
      value = getattr(self, name)
      whole = isinstance(value, int) and not isinstance(value, bool)
      if not whole or not 1 <= value < _MOST:
        raise ValueError(
            f'Model config has {name} = {_short(value)}; wanted a positive'
            f' integer below {_MOST}. Correct the model config.')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'Model config has {self.num_heads} query heads for'
          f' {self.num_kv_heads} key/value heads; wanted a multiple of the'
          ' latter. Correct the head counts in the model config.')
    if self.d_head % 2:
      raise ValueError(
          f'Model config has d_head = {self.d_head}; wanted an even width,'
          ' which rotary positions split into halves. Correct the head width.')
    for name in ('norm_eps', 'rope_theta'):
      value = getattr(self, name)
      if not 0 < value < math.inf:
        raise ValueError(
            f'Model config has {name} = {_short(value)}; wanted a positive'
            ' finite number. Correct the model config.')
    if self.windows and len(self.windows) != self.num_layers or not all(
        isinstance(x, int) and 0 <= x < _MOST for x in self.windows):
      raise ValueError(
          f'Model config has windows = {_short(self.windows)}; wanted none, or'
          f' {self.num_layers} integers from 0 on, one per layer. Correct the'
          ' model config.')

  @functools.cached_property
  def _kind_by_layer(self) -> tuple[LayerKind, ...]:
    return tuple(LayerKind(window, self.rope_theta, self.rope_scaling)
                 for window in self.windows or (0,) * self.num_layers)

  @functools.cached_property
  def kinds(self) -> tuple[LayerKind, ...]:
    """The kinds of layers, each once."""
    return tuple(dict.fromkeys(self._kind_by_layer))

  @functools.cached_property
  def kind_of_layer(self) -> tuple[int, ...]:
    """The number of each layer's kind among `kinds`."""
    return tuple(map(self.kinds.index, self._kind_by_layer))


def differences(
    one: ModelConfig, other: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
  """Yields the fields in which two configs differ, with both values.

  Real numbers are compared as float32, the dtype of their use. So 1e-5 equals
  9.99999975e-6, which a GGUF file stores for it.
  """
  for field in dataclasses.fields(one):
    values = getattr(one, field.name), getattr(other, field.name)
    if as_used(values[0]) != as_used(values[1]):
      yield field.name, *values


def as_used(value: Any) -> Any:
  """A field's value, with real numbers in float32."""
  if isinstance(value, RopeScaling):
    return tuple(map(as_used, dataclasses.astuple(value)))
  with np.errstate(over='ignore'):
    return np.float32(value) if isinstance(value, float) else value


def _short(value: object) -> str:
  try:
    text = repr(value)
  except ValueError:  # An integer too long to print.
    return 'an integer of thousands of digits'
  return text if len(text) <= 40 else f'{text[:40]}...'
