"""INT8: one scale per output row, absmax / 127, ties to even."""

from __future__ import annotations

from mansu_jax.quant import integer_scheme

INT8 = integer_scheme.IntegerScheme(name='int8', largest=127)
