"""The quantizers that need calibration inputs, by the names of flags."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mansu_jax.quant import affine
from mansu_jax.quant import awq
from mansu_jax.quant import gptq

METHODS = ('gptq', 'awq')


class InputStatistics(NamedTuple):
  """What calibration keeps of the inputs x of a matrix, float32."""

  second_moment: jax.Array  # [in, in], mean of x x^T
  mean_abs: jax.Array  # [in], mean of |x|


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibratedScheme:
  """A 4-bit quantizer that looks at inputs; hashable, so static under jit.

  Attributes:
    name: the name in flags and records, e.g. 'gptq_g128'.
    method: 'gptq' or 'awq'.
    group: inputs that share a scale.
    damping: of `gptq`, see there.
    act_order: of `gptq`, see there. On by default, since in plain order GPTQ
      is no better than rounding on SmolLM2-135M (perplexity 60.8, so ordered
      54.6, rounded 60.4; 5,846 calibration tokens).
    grid: of `awq`, see there.
    clip: whether AWQ may clip weights.

  Raises:
    ValueError: an unknown method, or a number out of range.
  """

  name: str
  method: str
  group: int = 128
  damping: float = 0.01
  act_order: bool = True
  grid: int = 20
  clip: bool = True

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(
          f'Unknown calibrated method {self.method!r}: expected one of'
          f' {list(METHODS)}.')
    if self.group < 1 or self.grid < 1 or not self.damping >= 0:
      raise ValueError(
          f'{self}: expected group and grid of at least 1, damping of at least'
          ' 0. Correct them.')

  @property
  def holds_scale(self) -> bool:
    """As of `scheme.Scheme`: codes depend on all weights and on inputs."""
    return False

  def unnamed(self) -> CalibratedScheme:
    """The same for all names of one quantizer."""
    return dataclasses.replace(self, name='')

  @property
  def description(self) -> dict[str, Any]:
    """For records, as of `scheme.Scheme`."""
    how = {'gptq': ', act order' if self.act_order else '', 'awq': ''}
    return {'code_book': f'{self.method.upper()}, asymmetric 4-bit'
                         f' integers{how[self.method]}',
            'block': self.group, 'double_quantization': False}

  def encode(
      self, rows: jax.Array, inputs: InputStatistics, *,
      foldable: bool = True, clippable: jax.Array | None = None
  ) -> affine.AffineCodes:
    """Quantizes a float32 matrix [out, in].

    Args:
      rows: weights in torch order; matrices of the same inputs together.
      inputs: statistics of their inputs.
      foldable: whether what makes the inputs can take up the scales of AWQ;
        if not, AWQ rounds to nearest.
      clippable: bool [out], rows whose weights AWQ may clip; None: all.
    """
    if self.method == 'gptq':
      return gptq.gptq(
          rows, inputs.second_moment, group=self.group, damping=self.damping,
          act_order=self.act_order)
    clipped = None
    if self.clip:
      clipped = (jnp.ones(rows.shape[0], bool) if clippable is None
                 else clippable)
    return awq.awq(
        rows, *inputs, group=self.group, grid=self.grid if foldable else 1,
        clipped=clipped)

  def decode(self, codes: affine.AffineCodes) -> jax.Array:
    """Values (float32) of codes."""
    return affine.decode(codes)

  def boundaries(
      self, codes: affine.AffineCodes) -> tuple[jax.Array, jax.Array]:
    """See `affine.boundaries`; no entries are `frozen`: none hold a scale."""
    return affine.boundaries(codes)


CALIBRATED = {
    s.name: s for s in (
        CalibratedScheme(name='gptq_g128', method='gptq'),
        CalibratedScheme(name='awq_g128', method='awq'))
}


def get(scheme: str | CalibratedScheme) -> CalibratedScheme:
  """Returns the scheme of a name; a scheme is returned as it is.

  Raises:
    ValueError: no calibrated scheme has the name.
  """
  if isinstance(scheme, CalibratedScheme):
    return scheme
  if scheme not in CALIBRATED:
    raise ValueError(
        f'Unknown calibrated scheme {scheme!r}: known are'
        f' {sorted(CALIBRATED)}.')
  return CALIBRATED[scheme]
