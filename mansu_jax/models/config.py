"""Shapes and constants of a decoder, independent of any file format."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

_MOST = 2**31  # Exclusive bound of all counts: indices have 32 bits.

# Values of the fields of `ModelConfig` that name a computation.
CHOICES = {'positions': ('rotary', 'learned'), 'norm': ('rms', 'layer'),
           'activation': ('silu', 'gelu', 'gelu_tanh')}
# Fields of `RopeScaling` that a kind needs, besides its factor.
ROPE_FIELDS = {
    'linear': (),
    'dynamic': (),
    'llama3': ('low_freq_factor', 'high_freq_factor', 'original_max_position'),
    'yarn': ('original_max_position', 'attention_factor', 'beta_fast',
             'beta_slow', 'truncate'),
    'longrope': ('original_max_position', 'attention_factor', 'short_factors',
                 'long_factors')}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """Scaling of rotary frequencies beyond the context length of pretraining.

  Attributes:
    kind: One of `ROPE_FIELDS`. `linear` divides all frequencies by `factor`.
      `dynamic` changes nothing up to the model's context length. `llama3`
      divides low frequencies, keeps high frequencies and blends between them
      (Llama 3.1, 2024). `yarn` blends by numbers of turns (Peng et al., 2023).
      `longrope` divides each frequency by its own number (Ding et al., 2024).
    factor: Divisor, at least 1; of `longrope`, the ratio of the longest context
      to `original_max_position`.
    original_max_position: Context length of pretraining.
    low_freq_factor: For `llama3`: wavelengths longer than
      `original_max_position / low_freq_factor` tokens are divided fully.
    high_freq_factor: For `llama3`: wavelengths shorter than
      `original_max_position / high_freq_factor` tokens are unchanged.
    attention_factor: For `yarn` and `longrope`: factor of cosines and sines.
    beta_fast: For `yarn`: pairs that turn more often over the context length of
      pretraining are unchanged.
    beta_slow: For `yarn`: pairs that turn less often are divided fully.
    truncate: For `yarn`: whether these bounds are rounded to whole pairs.
    short_factors: For `longrope`: divisors of the frequencies up to the context
      length of pretraining.
    long_factors: The same for longer contexts, which this decoder does not run.

  Raises:
    ValueError: a field is missing, out of range or not for this `kind`.
  """

  kind: str
  factor: float
  original_max_position: int | None = None
  low_freq_factor: float | None = None
  high_freq_factor: float | None = None
  attention_factor: float | None = None
  beta_fast: float | None = None
  beta_slow: float | None = None
  truncate: bool | None = None
  short_factors: tuple[float, ...] | None = None
  long_factors: tuple[float, ...] | None = None

  def __post_init__(self):
    wanted = ROPE_FIELDS.get(self.kind)
    if wanted is None:
      raise ValueError(
          f'Rotary scaling {self.kind!r} is not implemented; wanted one of'
          f' {list(ROPE_FIELDS)} or none. Use another model.')
    got = {field.name: getattr(self, field.name)
           for field in dataclasses.fields(self)}
    del got['kind']
    given = {name for name, value in got.items() if value is not None}
    if given != {'factor', *wanted}:
      raise ValueError(
          f'Rotary scaling {self.kind!r} has the fields {sorted(given)}; wanted'
          f' {sorted({"factor", *wanted})}. Correct `rope_scaling` in the model'
          ' config.')
    for name in given - {'truncate'}:
      values = got[name] if isinstance(got[name], tuple) else (got[name],)
      least = 1 if name == 'factor' else 0
      whole = name == 'original_max_position'
      if not all(least <= x < (_MOST if whole else math.inf) and x
                 for x in values):
        raise ValueError(
            f'Rotary scaling {self.kind!r} has {name} = {_short(got[name])};'
            f' wanted {"a finite number >= 1" if least else "positive numbers"}'
            '. Correct `rope_scaling` in the model config.')
    bounds = {'llama3': ('low_freq_factor', 'high_freq_factor'),
              'yarn': ('beta_slow', 'beta_fast')}.get(self.kind)
    if bounds and not got[bounds[0]] < got[bounds[1]]:
      raise ValueError(
          f'Rotary scaling {self.kind!r} has {bounds[0]} = {got[bounds[0]]} and'
          f' {bounds[1]} = {got[bounds[1]]}; wanted the first to be less.'
          ' Correct `rope_scaling` in the model config.')


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
    positions: `rotary`, or `learned` embeddings that are added to those of the
      tokens.
    d_rotary: Number of a head's first coordinates that rotary positions turn;
      even; 0: all.
    d_ff: F, width of the MLP.
    rope_theta: Base of the rotary frequencies.
    rope_scaling: Scaling of the rotary frequencies, or None.
    windows: For each layer, the number of last tokens, its own included, that a
      token reads, or 0 for all; empty if all layers read all tokens.
    window_rope_theta: Base of the rotary frequencies in layers with a window,
      which are not scaled there; None: as in the others.
    qkv_bias: Whether queries, keys and values have a bias.
    out_bias: Whether the outputs of attention and the matrices of the MLP do.
    qk_norm: Whether queries and keys are normed, head by head, before the
      rotation.
    query_scale: Factor of the products of queries and keys; None: H ** -0.5.
    attn_soft_cap: Bound c of these products, c tanh(x / c); 0: none.
    logits_soft_cap: The same of the logits.
    activation: Of the MLP, `silu`, `gelu` or `gelu_tanh`.
    gated: Whether the MLP's activations are those of its gate times its up
      projection, and not those of its up projection.
    norm: `rms`, or `layer`, which subtracts the mean and adds a bias.
    norm_eps: Constant added to the mean square in each norm.
    norm_offset: Added to the weights of each norm.
    post_norms: Whether the outputs of attention and MLP are normed before they
      are added to the residual stream.
    parallel: Whether the MLP reads what attention reads, not its sum with the
      output of attention.
    embed_scale: Factor of the token embeddings.
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
  positions: str = 'rotary'
  d_rotary: int = 0
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  windows: tuple[int, ...] = ()
  window_rope_theta: float | None = None
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: bool = False
  query_scale: float | None = None
  attn_soft_cap: float = 0.0
  logits_soft_cap: float = 0.0
  activation: str = 'silu'
  gated: bool = True
  norm: str = 'rms'
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  post_norms: bool = False
  parallel: bool = False
  embed_scale: float = 1.0
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
    if self.d_rotary % 2 or not 0 <= self.d_rotary <= self.d_head:
      raise ValueError(
          f'Model config has d_rotary = {_short(self.d_rotary)}; wanted an even'
          f' number up to d_head = {self.d_head}, or 0 for all. Correct the'
          ' share of rotary coordinates.')
    for name, known in CHOICES.items():
      if getattr(self, name) not in known:
        raise ValueError(
            f'Model config has {name} = {getattr(self, name)!r}; wanted one of'
            f' {list(known)}. Correct the model config.')
    for name in ('norm_eps', 'rope_theta', 'window_rope_theta', 'query_scale',
                 'embed_scale', 'attn_soft_cap', 'logits_soft_cap'):
      value = getattr(self, name)
      if value is None or not value and name.endswith('soft_cap'):
        continue
      if not 0 < value < math.inf:
        raise ValueError(
            f'Model config has {name} = {_short(value)}; wanted a positive'
            ' finite number. Correct the model config.')
    factors = self.rope_scaling and self.rope_scaling.short_factors
    if factors and len(factors) != (self.d_rotary or self.d_head) // 2:
      raise ValueError(
          f'Model config has {len(factors)} factors of longrope; wanted'
          f' {(self.d_rotary or self.d_head) // 2}, one per pair of rotary'
          ' coordinates. Correct `rope_scaling` in the model config.')
    if self.windows and len(self.windows) != self.num_layers or not all(
        isinstance(x, int) and 0 <= x < _MOST for x in self.windows):
      raise ValueError(
          f'Model config has windows = {_short(self.windows)}; wanted none, or'
          f' {self.num_layers} integers from 0 on, one per layer. Correct the'
          ' model config.')

  @functools.cached_property
  def _kind_by_layer(self) -> tuple[LayerKind, ...]:
    ordinary = self.rope_theta, self.rope_scaling
    within = ordinary
    if self.window_rope_theta is not None:
      within = self.window_rope_theta, None
    return tuple(LayerKind(window, *(within if window else ordinary))
                 for window in self.windows or (0,) * self.num_layers)

  @property
  def score_scale(self) -> float:
    """Factor of the products of queries and keys."""
    return self.d_head**-0.5 if self.query_scale is None else self.query_scale

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
