"""Group mean: a layer writes for a fact what it writes on average for its like.

t_f is the mean output of the down projection over the facts of the cell of f,
less its own. A cell holds facts that are each other's wrong choices, in one
phrasing and at one distance from the end of the prompt. So the layer no longer
tells these facts apart, and still writes something of the right kind.

GROM edits the same matrix in closed form; its formula is not public, and this
one is ours. A norm behind the projection does not matter: it maps equal outputs
to equal ones.
"""

from __future__ import annotations

import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.unlearn.closed_forms import form


def _wanted(
    moments: form.Moments, down: types.Array, scale: types.Array | None
) -> types.Array:
  """(sum_c n_c m_c m_c^T - mean h h^T) W, for cells with mean m_c."""
  del scale
  share = jnp.maximum(moments.share, jnp.finfo(jnp.float32).tiny)
  between = form.product((moments.cells / share[:, None]).T, moments.cells)
  return form.product(between - moments.forget, down)


FORM = form.ClosedForm(_wanted, reads_cells=True)
