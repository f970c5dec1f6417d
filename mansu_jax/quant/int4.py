"""INT4: groups along the input, absmax / 7, ties to even."""

from __future__ import annotations

from mansu_jax.quant import integer_scheme

INT4_G128 = integer_scheme.IntegerScheme(
    name='int4_g128', largest=7, group=128)
INT4_G32 = integer_scheme.IntegerScheme(name='int4_g32', largest=7, group=32)
# The name `int4` in flags and records: groups of 128.
INT4 = integer_scheme.IntegerScheme(name='int4', largest=7, group=128)
