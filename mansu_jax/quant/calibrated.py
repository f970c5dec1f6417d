"""The quantizers that need calibration inputs, by name."""

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
  """Statistics (float32) of the calibration inputs x of a matrix."""

  second_moment: jax.Array  # [in, in], mean of x x^T
  mean_abs: jax.Array  # [in], mean of |x|


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibratedScheme:
  """A 4-bit quantizer that uses calibration inputs.

  Hashable, so that it can be a static argument of jit.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> from mansu_jax.quant import calibrated
    >>> x = jnp.eye(4)
    >>> inputs = calibrated.InputStatistics(x @ x.T / 4, jnp.mean(x, 0))
    >>> scheme = quant.find('gptq_g128')
    >>> codes = scheme.encode(jnp.array([[0.0, 0.5, 1.0, 1.5]]), inputs)
    >>> print(codes.code)
    [[ 0  5 10 15]]

  Attributes:
    name: name in flags and records, e.g. 'gptq_g128'.
    method: 'gptq' or 'awq'.
    group: number of inputs that share a scale.
    damping: see `gptq.gptq`.
    act_order: see `gptq.gptq`. True by default: on SmolLM2-135M with 5,846
      calibration tokens, perplexity is 54.6 with it, 60.8 without it and 60.4
      with rounding to nearest.
    grid: see `awq.awq`.
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
          f'Unknown calibrated method {self.method!r}; wanted one of'
          f' {list(METHODS)}.')
    if self.group < 1 or self.grid < 1 or not self.damping >= 0:
      raise ValueError(
          f'{self} is out of range; wanted a group and grid of at least 1 and a'
          ' damping of at least 0.')

  @property
  def holds_scale(self) -> bool:
    """False: codes depend on all weights and on the inputs."""
    return False

  def unnamed(self) -> CalibratedScheme:
    """The scheme without its name; equal for aliases of one quantizer."""
    return dataclasses.replace(self, name='')

  @property
  def description(self) -> dict[str, Any]:
    """Code book, block size and double quantization, for records."""
    order = ', act order' if self.method == 'gptq' and self.act_order else ''
    return {'code_book': f'{self.method.upper()}, asymmetric 4-bit'
                         f' integers{order}',
            'block': self.group, 'double_quantization': False}

  def encode(
      self, rows: jax.Array, inputs: InputStatistics, *,
      foldable: bool = True, clippable: jax.Array | None = None
  ) -> affine.AffineCodes:
    """Quantizes a float32 matrix [out, in].

    Args:
      rows: weights in torch order; pass matrices with the same inputs together.
      inputs: statistics of the inputs.
      foldable: whether the operation that produces the inputs can absorb AWQ's
        scales; if not, AWQ rounds to nearest.
      clippable: bool [out], rows whose weights AWQ may clip; None for all.
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
    """See `affine.boundaries`."""
    return affine.boundaries(codes)


CALIBRATED = {
    s.name: s for s in (
        CalibratedScheme(name='gptq_g128', method='gptq'),
        CalibratedScheme(name='awq_g128', method='awq'))
}


def get(scheme: str | CalibratedScheme) -> CalibratedScheme:
  """Returns the scheme of a name; returns a scheme unchanged.

  Raises:
    ValueError: no calibrated scheme has the name.
  """
  if isinstance(scheme, CalibratedScheme):
    return scheme
  if scheme not in CALIBRATED:
    raise ValueError(
        f'Unknown calibrated scheme {scheme!r}; wanted one of'
        f' {sorted(CALIBRATED)}.')
  return CALIBRATED[scheme]
