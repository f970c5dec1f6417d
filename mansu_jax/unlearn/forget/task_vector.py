"""Task vector: what learning the answers adds to the weights is subtracted.

References:
  Ilharco et al., Editing Models with Task Arithmetic, 2022 (arXiv 2212.04089)
"""

from __future__ import annotations

from mansu_jax.unlearn.forget import term

# Training makes the answers likelier; `whole_edits.subtract` does the rest.
TERM = term.ForgetTerm(lambda options, step: step.nll.mean())
