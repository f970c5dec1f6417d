"""The run's quantizers: some only look at weights, others at inputs too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
import functools
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.models import calibration
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layout as model_layout
from mansu_jax.quant import survival as survival_lib
from mansu_jax.runtime import sharding
from mansu_jax.stages.prepare import inputs as inputs_lib

_SHARES = ('moved', 'changed_codes', 'moved_unchanged', 'median_ratio',
           'carried', 'cosine')


def guaranteed(config: run_config.RunConfig) -> tuple[str, ...]:
  """The quantizers under which the floor promises that every edit survives.

  Those whose scales stay where the floor freezes what sets them; the others
  are measured only. None without a floor.
  """
  if config.mode not in ('unlearn', 'plan') or config.edit.floor == 'none':
    return ()
  return held(config.quant_schemes)


def held(names: Sequence[str]) -> tuple[str, ...]:
  """Those of the quantizers that have a fixed grid."""
  return tuple(n for n in names if quant.find(n).holds_scale)


def of_base(precision: str, names: Sequence[str]) -> list[str]:
  """Under which of the quantizers the base stands beside a precision.

  Its own, or the first where it is full precision; none where there is none.
  """
  return [precision] if precision in names else list(names[:1])


def check(config: run_config.RunConfig) -> None:
  """Raises ValueError on `--quant_schemes` that cannot be used together.

  An unknown one, one named twice, or, to unlearn, a leading one that has no
  fixed grid for edits to land on.
  """
  names = config.quant_schemes
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
  edits = config.mode in ('unlearn', 'plan') and config.method == 'mansu'
  if edits and not quant.find(names[0]).holds_scale:
    why = ('whose codes depend on what comes in at a matrix'
           if names[0] in quant.CALIBRATED
           else 'whose scales depend on all weights of a block')
    raise ValueError(
        f'{given} starts with {names[0]}, {why}, so that no edit can be made'
        ' to land on its codes; wanted first a quantizer with a fixed grid'
        f' ({", ".join(held(tuple(quant.SCHEMES)))}). Put one first:'
        f' {names[0]} is then measured beside it.')


def check_shapes(
    config: run_config.RunConfig, shapes: model_config.ModelConfig) -> None:
  """Raises ValueError where a quantizer cannot cut the model's matrices."""
  layout, params = model_layout.block_layout(shapes), decoder.abstract(shapes)
  for name in config.quant_schemes:
    scheme = quant.find(name)
    if isinstance(scheme, quant.Scheme):
      try:
        quant.check_quantizable(params, layout, scheme)
      except ValueError as error:
        raise ValueError(f'--quant_schemes has {name}: {error}') from error


def views(
    config: run_config.RunConfig, quantize: Callable[..., types.Params]
) -> dict[str, Callable[..., types.Params]]:
  """What a model is at each precision, full precision first.

  Args:
    config: the run's.
    quantize: as `Quantizers` are called.

  Returns:
    `{precision: (params, donate=()) -> params}`; `donate` as of `Quantizers`.
  """
  return {'fp': lambda params, donate=(): params} | {
      name: functools.partial(quantize, name)
      for name in config.quant_schemes}


def calibration_windows(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, tokenizer: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens [n, T] and mask of the run's calibration text."""
  return calibration.choose_windows(
      inputs.calibration, tokenizer,
      most_tokens=config.eval.calibration_tokens)


class Quantizers:
  """Quantizes params of one shape under each scheme of a run.

  Calibration is slow, so its codes are kept on the host, for as long as this
  object lives: little over a byte a weight, for each model and scheme.
  """

  def __init__(
      self, config: run_config.RunConfig, inputs: inputs_lib.Inputs,
      model: Any):
    self._config, self._inputs, self._model = config, inputs, model
    self._layout = model_layout.block_layout(model.config)
    self._kept: list[tuple[Any, types.Params, Any]] = []

  def __call__(
      self, name: str, params: types.Params, *, donate: Collection[str] = ()
  ) -> types.Params:
    """The params as the named scheme stores them, decoded.

    Args:
      name: the scheme's.
      params: full params.
      donate: leaves that may give their memory to the result.
    """
    scheme = quant.find(name)
    if isinstance(scheme, quant.Scheme):
      return quant.fake_quantize(params, scheme, self._layout, donate=donate)
    return calibration.dequantize(params, self._codes(scheme, params))

  def survival(
      self, base: types.Params, unlearned: types.Params
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contract's shares by scheme, and the full statistics."""
    details = {name: self._survival(name, base, unlearned)
               for name in self._config.quant_schemes}
    for name in guaranteed(self._config):
      lost = details[name]['total']['moved_unchanged']
      if lost:  # Nothing that we know of does this.
        logging.error(
            'The floor broke its promise: under %s a share of %g of all weights'
            ' moved and kept its code. Please report it.', name, lost)
    shares = {name: {k: found['total'][k] for k in _SHARES}
              for name, found in details.items()}
    return shares, details

  def _survival(self, name, base, unlearned):
    scheme, codes = quant.find(name), None
    if not isinstance(scheme, quant.Scheme):
      codes = self._codes(scheme, base), self._codes(scheme, unlearned)
    return survival_lib.survival(
        base, unlearned, scheme, self._layout, codes=codes)

  def describe(self) -> dict[str, Any]:
    """What the record says of each scheme; see `_describe`."""
    promised = guaranteed(self._config)
    return {name: self._describe(name, name in promised)
            for name in self._config.quant_schemes}

  def _describe(self, name: str, promised: bool) -> dict[str, Any]:
    """The code book, weights a scale, what stays, what the floor promises."""
    scheme = quant.find(name)
    out = {'name': name} | scheme.description | {
        'skipped': ['embed', 'norms', 'lm_head'], 'guaranteed': promised,
        'holds_scale': scheme.holds_scale}
    if isinstance(scheme, quant.Scheme):
      out['instead'] = self._instead(scheme)
    else:
      out['calibration'] = {
          'documents': len(self._inputs.calibration),
          'tokens': int(self._windows[1].sum()),
          'windows': len(self._windows[0])}
    return out

  def _instead(self, scheme: quant.Scheme) -> dict[str, str]:
    """Leaves whose rows the scheme cannot cut, and what they get."""
    columns = lambda leaf, leaf_layout: int(np.prod(
        [leaf.shape[leaf_layout.memory.index(a)] for a in leaf_layout.inp]))
    params = tree_paths.flatten(decoder.abstract(self._model.config))
    given = {name: scheme.for_columns(columns(params[name], leaf_layout)).name
             for name, leaf_layout in model_layout.MATRICES.items()}
    return {leaf: name for leaf, name in given.items() if name != scheme.name}

  def _codes(self, scheme, params):
    """Those that calibration makes of these very params, made once."""
    for kept_scheme, kept_params, codes in self._kept:
      if kept_scheme == scheme and kept_params is params:
        return codes
    codes = sharding.to_host(calibration.encode(
        self._model.config, params, *self._windows, scheme))
    self._kept.append((scheme, params, codes))
    return codes

  @functools.cached_property
  def _windows(self) -> tuple[np.ndarray, np.ndarray]:
    return calibration_windows(
        self._config, self._inputs, self._model.tokenizer)
