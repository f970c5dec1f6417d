"""INT4: groups of 128 along the input, absmax / 7, ties to even."""

from __future__ import annotations

from mansu_jax.quant import integer_scheme

INT4_G128 = integer_scheme.IntegerScheme(
    name='int4_g128', largest=7, group=128)
