"""4- and 8-bit quantizers on arrays, in torch's block layout, and their grids.

Pure array functions: this package knows no model.

* `fake_quantize` returns the weights that a quantized model computes with.
* `code_grid` returns the quantization grid that the magnitude floor needs.
* `check_edit` counts which moved weights changed their code.
* `survival.survival` measures how much of an edit quantization preserves.
* `packing` and `gguf_bytes` produce the bytes that bitsandbytes and llama.cpp
  store.

Names are imported at first use, so that `import mansu_jax.transforms` loads
only what the transformations need.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from mansu_jax.quant import packing
  from mansu_jax.quant import survival
  from mansu_jax.quant.calibrated import CALIBRATED
  from mansu_jax.quant.edit_check import check_edit
  from mansu_jax.quant.edit_check import EditCheck
  from mansu_jax.quant.formats import gguf_bytes
  from mansu_jax.quant.grids import CodeGrid
  from mansu_jax.quant.grids import grid_view
  from mansu_jax.quant.grids import LeafGrid
  from mansu_jax.quant.layout import BlockLayout
  from mansu_jax.quant.layout import from_rows
  from mansu_jax.quant.layout import to_rows
  from mansu_jax.quant.layout import TORCH
  from mansu_jax.quant.make_grids import code_grid
  from mansu_jax.quant.scheme import Codes
  from mansu_jax.quant.scheme import Scheme
  from mansu_jax.quant.scheme import Shared
  from mansu_jax.quant.schemes import find
  from mansu_jax.quant.schemes import get
  from mansu_jax.quant.schemes import NAMES
  from mansu_jax.quant.schemes import SCHEMES
  from mansu_jax.quant.simulate import check_quantizable
  from mansu_jax.quant.simulate import fake_quantize

# Module of this package -> its public names. An empty tuple exports the module.
_EXPORTS = {
    'packing': (),
    'survival': (),
    'formats.gguf_bytes': (),
    'calibrated': ('CALIBRATED',),
    'edit_check': ('check_edit', 'EditCheck'),
    'grids': ('CodeGrid', 'grid_view', 'LeafGrid'),
    'layout': ('BlockLayout', 'from_rows', 'to_rows', 'TORCH'),
    'make_grids': ('code_grid',),
    'scheme': ('Codes', 'Scheme', 'Shared'),
    'schemes': ('find', 'get', 'NAMES', 'SCHEMES'),
    'simulate': ('check_quantizable', 'fake_quantize'),
}
_MODULE_OF = {
    name: module for module, names in _EXPORTS.items()
    for name in names or (module.rpartition('.')[2],)}
__all__ = sorted(_MODULE_OF)


def __getattr__(name):
  if name not in _MODULE_OF:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_MODULE_OF[name]}')
  value = getattr(module, name) if _EXPORTS[_MODULE_OF[name]] else module
  globals()[name] = value
  return value


def __dir__():
  return sorted({*globals(), *__all__})
