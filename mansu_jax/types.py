"""Type aliases, and the axis letters of all comments on arrays.

Axes: B batch, T query token, S key token, D model width, N query heads,
K key/value heads, H head width, F MLP width, V vocabulary, L layers,
M path steps, E edges, R rank, Q quantization block. Circuit slices have n
neurons, m query heads and c key/value heads in each layer.
"""

from __future__ import annotations

from typing import Any

import jax

Array = jax.Array
Params = dict[str, Any]  # Nested dicts of arrays; see tree_paths for names.
PyTree = Any
