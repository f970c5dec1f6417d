"""FP4 as in bitsandbytes: the default of `load_in_4bit=True`."""

from __future__ import annotations

from mansu_jax.quant import codebook_scheme
from mansu_jax.quant import codebooks

FP4 = codebook_scheme.CodebookScheme(
    name='fp4', table=tuple(codebooks.FP4.tolist()),
    order=tuple(codebooks.FP4_ORDER.tolist()))
