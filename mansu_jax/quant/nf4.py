"""NF4 as in bitsandbytes: blocks of 64, absmax scales in float32."""

from __future__ import annotations

from mansu_jax.quant import codebook_scheme
from mansu_jax.quant import codebooks

NF4 = codebook_scheme.CodebookScheme(
    name='nf4', table=tuple(codebooks.NF4.tolist()),
    order=tuple(codebooks.NF4_ORDER.tolist()))
