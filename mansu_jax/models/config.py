"""The shape and constants of one decoder, independent of any file format."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

import numpy as np

# A count beyond is no model's, and an index of it would not fit 32 bits.
_MOST = 2**31

ROPE_KINDS = ('linear', 'llama3')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the trained context.

  Attributes:
    kind: `linear` divides every frequency by `factor`; `llama3` divides the
      slow ones, keeps the fast ones and blends between (Llama 3.1, 2024).
    factor: the divisor, at least 1.
    low_freq_factor: `llama3` only; wavelengths longer than
      `original_max_position / low_freq_factor` tokens are divided in full.
    high_freq_factor: `llama3` only; wavelengths shorter than
      `original_max_position / high_freq_factor` tokens are kept.
    original_max_position: `llama3` only; context length of pretraining.
  """

  kind: str
  factor: float
  low_freq_factor: float | None = None
  high_freq_factor: float | None = None
  original_max_position: int | None = None

  def __post_init__(self):
    if self.kind not in ROPE_KINDS:
      raise ValueError(
          f'Rotary scaling {self.kind!r} is not implemented: expected one of'
          f' {list(ROPE_KINDS)} or none. Use a model with one of these.')
    if not 1 <= self.factor < math.inf:
      raise ValueError(
          f'Rotary scaling factor is {self.factor}: expected a number from 1.'
          ' Correct `rope_scaling` in the model config.')
    bands = (self.low_freq_factor, self.high_freq_factor,
             self.original_max_position)
    if self.kind == 'llama3' and None in bands:
      raise ValueError(
          'Rotary scaling `llama3` got (low_freq_factor, high_freq_factor,'
          f' original_max_position) = {bands}: expected all three. Complete'
          ' `rope_scaling` in the model config.')
    if self.kind == 'llama3' and not (
        0 < bands[0] < bands[1] < math.inf and 0 < bands[2] < _MOST):
      raise ValueError(
          'Rotary scaling `llama3` has (low_freq_factor, high_freq_factor,'
          f' original_max_position) = {bands}: expected positive numbers, the'
          ' first less than the second. Correct `rope_scaling` in the model'
          ' config.')
    if self.kind != 'llama3' and bands != (None, None, None):
      raise ValueError(
          f'Rotary scaling {self.kind!r} got llama3 bands {bands}: expected'
          ' none. Remove them from `rope_scaling`.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Everything the decoder needs besides its weights; hashable, so static.

  Attributes:
    vocab_size: V.
    d_model: D, width of the residual stream.
    num_layers: L.
    num_heads: N query heads.
    num_kv_heads: K key/value heads; query head n reads head n // (N / K).
    d_head: H, even (rotary halves); need not be D / N.
    d_ff: F, width of the MLP.
    rope_theta: base of the rotary frequencies.
    rope_scaling: how frequencies are stretched, or None.
    norm_eps: added to the mean square in every RMSNorm.
    tie_embeddings: whether the output matrix is the embedding.
    max_position: longest context the model was made for, in tokens.
    bos_token_id: id or None.
    eos_token_id: id, several ids, or None.
    pad_token_id: id or None.
  """

  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  d_head: int
  d_ff: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
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
            f'Model config has {name} = {_short(value)}: expected a positive'
            f' integer below {_MOST}. Correct the model config.')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'Model config has {self.num_heads} query heads for'
          f' {self.num_kv_heads} key/value heads: expected a multiple.'
          ' Correct the head counts in the model config.')
    if self.d_head % 2:
      raise ValueError(
          f'Model config has d_head = {self.d_head}: expected an even width,'
          ' since rotary positions pair its halves. Correct the head width.')
    for name in ('norm_eps', 'rope_theta'):
      value = getattr(self, name)
      if not 0 < value < math.inf:
        raise ValueError(
            f'Model config has {name} = {_short(value)}: expected a positive'
            ' number. Correct the model config.')


def differences(
    one: ModelConfig, other: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
  """Fields in which two models differ, with the value of each.

  Real numbers are compared as float32, in which they are used: 1e-5 and the
  9.99999975e-6 that a GGUF file makes of it are the same.
  """
  for field in dataclasses.fields(one):
    values = getattr(one, field.name), getattr(other, field.name)
    if as_used(values[0]) != as_used(values[1]):
      yield field.name, *values


def as_used(value: Any) -> Any:
  """A field's value, real numbers in float32."""
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
