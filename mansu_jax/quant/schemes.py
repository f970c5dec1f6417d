"""The quantization schemes by name, as in `--quant_schemes`."""

from __future__ import annotations

import dataclasses
import re

from mansu_jax.quant import calibrated
from mansu_jax.quant import codebook_scheme
from mansu_jax.quant import fp4
from mansu_jax.quant import int4
from mansu_jax.quant import int8
from mansu_jax.quant import nf4
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant.formats import gguf_schemes
from mansu_jax.quant.formats import k_quants

SCHEMES = {
    s.name: s for s in (
        nf4.NF4, fp4.FP4, int8.INT8, int4.INT4, int4.INT4_G128, int4.INT4_G32,
        gguf_schemes.Q4_0, gguf_schemes.Q4_1, gguf_schemes.Q5_0,
        gguf_schemes.Q8_0, k_quants.Q4_K, k_quants.Q6_K)
}
NAMES = (*SCHEMES, *calibrated.CALIBRATED)
# Variants: nf4_b128 has blocks of 128; nf4_dq has double quantization.
_VARIANT = re.compile(r'(nf4|fp4)(?:_b(\d+))?(_dq)?')


def find(name: str) -> scheme_lib.Scheme | calibrated.CalibratedScheme:
  """Returns the scheme of a name, including schemes that need calibration.

  Example:
    >>> from mansu_jax import quant
    >>> quant.find('gptq_g128').method
    'gptq'

  Args:
    name: an entry of `NAMES`, or a variant as in `get`.

  Raises:
    ValueError: no scheme has the name.
  """
  return calibrated.CALIBRATED.get(name) or get(name)


def get(scheme: str | scheme_lib.Scheme) -> scheme_lib.Scheme:
  """Returns the scheme of a name; returns a scheme unchanged.

  Example:
    >>> from mansu_jax import quant
    >>> quant.get('nf4_b128').block
    128

  Args:
    scheme: a scheme, a key of `SCHEMES`, or `nf4` or `fp4` with a block size
      (`nf4_b128`), double quantization (`nf4_dq`) or both (`nf4_b128_dq`).

  Raises:
    ValueError: no scheme has the name, or the block size is not supported.
  """
  if isinstance(scheme, scheme_lib.Scheme):
    return scheme
  if scheme in SCHEMES:
    return SCHEMES[scheme]
  if scheme in calibrated.CALIBRATED:
    raise ValueError(
        f'{scheme} needs calibration inputs; wanted a scheme that needs the'
        ' weights alone. Use `encode` and `dequantize` of models.calibration.')
  variant = _VARIANT.fullmatch(scheme) if isinstance(scheme, str) else None
  if variant is None:
    raise ValueError(
        f'Unknown quantization scheme {scheme!r}; wanted one of'
        f' {", ".join(NAMES)}; or nf4 or fp4 with a block size, double'
        ' quantization or both, such as nf4_b128, nf4_dq or nf4_b128_dq.')
  family, block, double = variant.groups()
  return dataclasses.replace(
      SCHEMES[family], name=scheme, double_quant=bool(double),
      block=int(block or codebook_scheme.DEFAULT_BLOCK))
