"""The programs that quantize and calibrate a model (see `runtime.programs`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import calibration
from mansu_jax.models import config as model_config
from mansu_jax.models import layout as model_layout
from mansu_jax.models import lora
from mansu_jax.quant import affine
from mansu_jax.quant import simulate
from mansu_jax.runtime import programs


def matrices(params: types.Params) -> types.Params:
  """Leaves that a second model holds; it shares the others with the base."""
  flat = tree_paths.flatten(params)
  return {leaf: flat[leaf] for leaf in model_layout.matrices_of(flat)}


def merge_adapters(
    params: types.Params, adapters: types.PyTree, scale: float,
    dtype: str | None = None, *, calls: int = 1) -> programs.Programs:
  """Merges LoRA adapters leaf by leaf; the stage holds the result already.

  Args:
    params: the model's shapes.
    adapters: their shapes.
    scale: see `lora`.
    dtype: see `lora.merge`.
    calls: number of models.
  """
  flat, found = map(tree_paths.flatten, (params, adapters))
  for leaf in model_layout.matrices_of(flat):
    yield programs.program(
        f'merge into {leaf}', lora.merge_leaf, flat[leaf], found[f'{leaf}/a'],
        found[f'{leaf}/b'], scale, dtype, calls=calls, held=True)


def quantize(
    params: types.Params, name: str, *, calls: int = 1,
    donate: Collection[str] = ()) -> programs.Programs:
  """Quantizes a model leaf by leaf; returns the quantized shapes.

  Args:
    params: the model's shapes. The stage holds the quantized ones already.
    name: of a scheme that needs no calibration.
    calls: number of models.
    donate: names of leaves whose memory the result takes over.
  """
  scheme, flat = quant.find(name), tree_paths.flatten(params)
  for leaf, layout in model_layout.matrices_of(flat).items():
    yield programs.program(
        f'blocks of {leaf}', simulate.any_extreme, flat[leaf], calls=calls)
    run = (simulate.fake_quantize_in_place if leaf in donate
           else simulate.fake_quantize_leaf)
    flat[leaf] = yield programs.program(
        f'{name} of {leaf}', run, flat[leaf], scheme.ordinary(), layout,
        calls=calls, held=leaf not in donate)
  return tree_paths.unflatten(flat)


def calibrate(
    config: model_config.ModelConfig, params: types.Params, name: str,
    windows: Any, *, calls: int) -> programs.Programs:
  """Computes the codes of `calls` models under a calibrated scheme."""
  yield programs.program(
      f'calibration of {name}', calibration.encode_layers, config,
      quant.find(name), params, *programs.shapes_of(windows), calls=calls)


def codes(
    config: model_config.ModelConfig, params: types.Params, name: str,
    windows: Any, placer: programs.Placer) -> dict[str, affine.AffineCodes]:
  """Shapes of calibrated codes by leaf, as they lie on the devices."""
  found = calibration.encode_layers.eval_shape(
      config, quant.find(name), params, *programs.shapes_of(windows))
  return {leaf: calibration.place_codes(leaf_codes, placer.shard)
          for leaf, leaf_codes in found.items()}


def decode(
    params: types.Params, name: str, found: dict[str, affine.AffineCodes],
    *, calls: int = 1) -> programs.Programs:
  """Decodes calibrated codes, which lie on the host until then."""
  flat = tree_paths.flatten(params)
  for leaf, leaf_codes in found.items():
    flat[leaf] = yield programs.program(
        f'{name} of {leaf}', calibration.dequantize_leaf, leaf_codes,
        flat[leaf], leaf, calls=calls, held=True)
  return tree_paths.unflatten(flat)
