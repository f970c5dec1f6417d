"""4- and 8-bit quantizers on arrays, in torch's block layout, and their grids.

Pure array functions: no model is known here. `fake_quantize` gives the weights
that a quantized model computes with, `code_grid` what the magnitude floor needs
to know of the quantizer, `check_edit` whether each moved weight has another
code, `survival.survival` how much of an edit is left; `packing` and
`gguf_bytes` give the bytes that others store.
"""

from mansu_jax.quant import packing
from mansu_jax.quant import survival
from mansu_jax.quant.calibrated import CALIBRATED
from mansu_jax.quant.edit_check import check_edit
from mansu_jax.quant.edit_check import EditCheck
from mansu_jax.quant.formats import gguf_bytes
from mansu_jax.quant.grids import code_grid
from mansu_jax.quant.grids import CodeGrid
from mansu_jax.quant.grids import grid_view
from mansu_jax.quant.grids import LeafGrid
from mansu_jax.quant.layout import BlockLayout
from mansu_jax.quant.layout import from_rows
from mansu_jax.quant.layout import to_rows
from mansu_jax.quant.layout import TORCH
from mansu_jax.quant.scheme import Codes
from mansu_jax.quant.scheme import Scheme
from mansu_jax.quant.scheme import Shared
from mansu_jax.quant.schemes import find
from mansu_jax.quant.schemes import get
from mansu_jax.quant.schemes import NAMES
from mansu_jax.quant.schemes import SCHEMES
from mansu_jax.quant.simulate import check_quantizable
from mansu_jax.quant.simulate import fake_quantize
