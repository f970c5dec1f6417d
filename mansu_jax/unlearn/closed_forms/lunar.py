"""LUNAR: the states at forget prompts move to where the model refuses.

Every t_f is r, the mean state after the layer in refusals less that at the ends
of forget prompts.

The authors take the first mean at the ends of prompts that an instruction model
refuses: harmful ones, or questions about invented things. A base model refuses
no prompt, so ours is over the tokens of refusals that follow the forget prompts
(ours). They edit all tokens of a forget prompt. We leave out those that another
fact's text begins with as well, since a causal model has one state there for
both. They train W by AdamW for a few epochs; we solve for it.

Where the model norms what its MLP adds, an output z adds g z / |z|, with the
norm's scale g and the size |z|. Then t_f is |z_f| times the least-squares
solution of g x = r, which is damped: r cannot be added along axes that the norm
nearly removes (ours). To first order, with the size as it was, the MLP then
adds r more.

References:
  Shen et al., LLM Unlearning via Neural Activation Redirection, 2025
  (arXiv 2502.07218)
"""

from __future__ import annotations

import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.unlearn.closed_forms import form

_DAMPING = 0.01  # Share of the mean square of a norm's scale.


def before_norm(
    wanted: types.Array, scale: types.Array | None) -> types.Array:
  """What a norm with `scale` maps to [D] at size 1, damped; [D]."""
  if scale is None:
    return wanted
  square = jnp.square(scale)
  return scale * wanted / (square + _DAMPING * jnp.mean(square))


def _wanted(
    moments: form.Moments, down: types.Array, scale: types.Array | None
) -> types.Array:
  del down
  return jnp.outer(moments.sized, before_norm(moments.redirection, scale))


FORM = form.ClosedForm(_wanted, reads_refusals=True)
