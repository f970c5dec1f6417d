"""The quantization schemes by the names of `--quant_schemes`."""

from __future__ import annotations

from mansu_jax.quant import fp4
from mansu_jax.quant import int4
from mansu_jax.quant import int8
from mansu_jax.quant import nf4
from mansu_jax.quant import scheme as scheme_lib

SCHEMES = {
    s.name: s for s in (nf4.NF4, fp4.FP4, int8.INT8, int4.INT4_G128)
}


def get(scheme: str | scheme_lib.Scheme) -> scheme_lib.Scheme:
  """Returns the scheme of a name; a scheme is returned as it is.

  Raises:
    ValueError: no scheme has the name.
  """
  if isinstance(scheme, scheme_lib.Scheme):
    return scheme
  if scheme not in SCHEMES:
    raise ValueError(
        f'Unknown quantization scheme {scheme!r}: known are'
        f' {sorted(SCHEMES)}.')
  return SCHEMES[scheme]
