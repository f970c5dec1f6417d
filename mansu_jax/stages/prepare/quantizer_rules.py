"""Rules of `--quant_schemes`: which names fit together, a model and an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mansu_jax import quant
from mansu_jax.models import assemble
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import families
from mansu_jax.models import layout as model_layout


def guaranteed(names: Sequence[str], floor: str) -> tuple[str, ...]:
  """The quantizers under which the floor guarantees that every edit survives.

  They have a fixed grid, whose scales the floor freezes. The others are only
  measured. Empty without a floor.
  """
  return () if floor == 'none' else with_fixed_grid(names)


def with_fixed_grid(names: Sequence[str]) -> tuple[str, ...]:
  """The quantizers whose grid an edit within a block leaves unchanged."""
  return tuple(n for n in names if quant.find(n).holds_scale)


def of_base(precision: str, names: Sequence[str]) -> list[str]:
  """The quantizer of the base that is compared at a precision, if any.

  At a quantizer its own; in full precision the first.
  """
  return [precision] if precision in names else list(names[:1])


def check(names: Sequence[str], *, edits: bool) -> None:
  """Raises ValueError on `--quant_schemes` that cannot be used together.

  Args:
    names: the quantizers.
    edits: whether edits must land on the first one's codes, which needs a fixed
      grid.
  """
  given = f'--quant_schemes={",".join(names)}'
  found: dict[Any, str] = {}
  for name in names:
    try:
      scheme = quant.find(name)
    except ValueError as error:
      raise ValueError(f'{given}: {error} Correct the name.') from error
    first = found.setdefault(scheme.unnamed(), name)
    if first != name or names.count(name) > 1:
      raise ValueError(
          f'{given} repeats a quantizer ({name} is {first}); wanted each once.'
          ' Drop the repetition.')
  if edits and not quant.find(names[0]).holds_scale:
    why = ('whose codes depend on the calibration inputs'
           if names[0] in quant.CALIBRATED
           else 'whose scales depend on all weights of a block')
    raise ValueError(
        f'{given} starts with {names[0]}, {why}: an edit cannot be made to land'
        ' on its codes. Wanted a quantizer with a fixed grid first'
        f' ({", ".join(with_fixed_grid(tuple(quant.SCHEMES)))}); {names[0]} may'
        ' follow it and is then measured.')


def check_shapes(
    names: Sequence[str], shapes: model_config.ModelConfig) -> None:
  """Raises ValueError if a quantizer cannot cut the model's matrices."""
  layout, params = model_layout.block_layout(shapes), decoder.abstract(shapes)
  for name in names:
    scheme = quant.find(name)
    if isinstance(scheme, quant.Scheme):
      try:
        quant.check_quantizable(params, layout, scheme)
      except ValueError as error:
        raise ValueError(f'--quant_schemes has {name}: {error}') from error
      _check_fused(name, scheme, shapes)


def _check_fused(
    name: str, scheme: quant.Scheme, shapes: model_config.ModelConfig) -> None:
  """Raises ValueError if matrices that share a tensor also share blocks.

  The simulator quantizes each matrix on its own.
  """
  for tensor in assemble.tensors(shapes, families.naming(shapes)):
    if tensor.layer != 0 or len(tensor.leaves) == 1 or tensor.width is None:
      continue  # All layers are alike.
    length = scheme.block_length(tensor.width)
    across = scheme.block_size(tensor.width) is None and any(
        height // tensor.heads * tensor.width % length
        for height in tensor.heights[:-1])
    double = getattr(scheme, 'double_quant', False)
    if across or double:
      what = 'quantizes the scales of' if double else 'has blocks across'
      raise ValueError(
          f'--quant_schemes has {name}, which {what} all matrices in'
          f' {tensor.name} together; wanted a quantizer of each by itself. Use'
          ' a quantizer without double quantization, or with another block.')
