"""bitsandbytes' float32 arithmetic where XLA would lose bits.

bitsandbytes keeps float32 subnormals; XLA flushes them to zero. That matters
only for blocks whose absmax is tiny (the scaled table is subnormal) or huge
(1 / absmax is). The functions here shift such operands by a power of two into
the normal range, and round to the subnormal grid by integer arithmetic. They
are right for all float32 values, and several times slower than plain ones.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blockwise

SMALLEST_ORDINARY = np.float32(2.0**-100)
LARGEST_ORDINARY = np.float32(2.0**100)
