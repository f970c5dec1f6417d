"""The run's quantizers, of weights alone or calibrated on text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
import functools
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import calibration
from mansu_jax.models import decoder
from mansu_jax.models import layout as model_layout
from mansu_jax.models.io import loading
from mansu_jax.quant import survival as survival_lib
from mansu_jax.runtime import sharding

_SHARES = ('moved', 'changed_codes', 'moved_unchanged', 'median_ratio',
           'carried', 'cosine')

# `{precision: (params, donate=()) -> params}`, full precision first.
Views = Mapping[str, Callable[..., types.Params]]


class Quantizers:
  """Quantizes params of one shape under each scheme of a run.

  Calibrated codes take long to compute, so this object keeps them on the host:
  a little over a byte a weight for each model and scheme.
  """

  def __init__(
      self, names: Sequence[str], model: loading.LoadedModel, *,
      calibration_texts: Sequence[str] = (), calibration_tokens: int = 0,
      guarantee: Sequence[str] = ()):
    """Prepares the quantizers; computes nothing.

    Args:
      names: the schemes, the leading one first.
      model: the base; gives shapes and tokenizer.
      calibration_texts: documents that calibrated schemes see.
      calibration_tokens: maximum number of their tokens.
      guarantee: the schemes under which the floor guarantees survival.
    """
    self.names, self._model = tuple(names), model
    self._texts, self._tokens = calibration_texts, calibration_tokens
    self._guarantee = tuple(guarantee)
    self._layout = model_layout.block_layout(model.config)
    self._kept: list[tuple[Any, types.Params, Any]] = []

  def views(self) -> dict[str, Callable[..., types.Params]]:
    """`{precision: (params, donate=()) -> params}`, full precision first."""
    return {'fp': lambda params, donate=(): params} | {
        name: functools.partial(self, name) for name in self.names}

  def __call__(
      self, name: str, params: types.Params, *, donate: Collection[str] = ()
  ) -> types.Params:
    """Quantizes and decodes the params under the named scheme.

    Args:
      name: the scheme's name.
      params: full params.
      donate: names of leaves whose memory the result may take over.
    """
    scheme = quant.find(name)
    if isinstance(scheme, quant.Scheme):
      return quant.fake_quantize(params, scheme, self._layout, donate=donate)
    return calibration.dequantize(params, self._codes(scheme, params))

  def survival(
      self, base: types.Params, unlearned: types.Params
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """`survival` and `survival_details` of the record."""
    details = {name: self._survival(name, base, unlearned)
               for name in self.names}
    for name in self._guarantee:
      lost = details[name]['total']['moved_unchanged']
      if lost:  # No known case.
        logging.error(
            'The floor broke its guarantee: under %s a share of %g of all'
            ' weights moved and kept its code. Please report this bug.', name,
            lost)
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
    """The record's description of each scheme."""
    return {name: self._describe(name) for name in self.names}

  def _describe(self, name: str) -> dict[str, Any]:
    scheme = quant.find(name)
    out = {'name': name} | scheme.description | {
        'skipped': ['embed', 'norms', 'lm_head'],
        'guaranteed': name in self._guarantee,
        'holds_scale': scheme.holds_scale}
    if isinstance(scheme, quant.Scheme):
      out['instead'] = self._instead(scheme)
    else:
      out['calibration'] = {
          'documents': len(self._texts),
          'tokens': int(self._windows[1].sum()),
          'windows': len(self._windows[0])}
    return out

  def _instead(self, scheme: quant.Scheme) -> dict[str, str]:
    """`{leaf: scheme}` of leaves whose rows the scheme cannot cut."""
    columns = lambda leaf, leaf_layout: int(np.prod(
        [leaf.shape[leaf_layout.memory.index(a)] for a in leaf_layout.inp]))
    params = tree_paths.flatten(decoder.abstract(self._model.config))
    given = {name: scheme.for_columns(columns(params[name], leaf_layout)).name
             for name, leaf_layout in model_layout.matrices_of(
                 params).items()}
    return {leaf: name for leaf, name in given.items() if name != scheme.name}

  def _codes(self, scheme, params):
    """Calibrated codes of these params, computed once."""
    for kept_scheme, kept_params, codes in self._kept:
      if kept_scheme == scheme and kept_params is params:
        return codes
    codes = sharding.to_host(calibration.encode(
        self._model.config, params, *self._windows, scheme))
    self._kept.append((scheme, params, codes))
    return codes

  @functools.cached_property
  def _windows(self) -> tuple[np.ndarray, np.ndarray]:
    return calibration.choose_windows(
        self._texts, self._model.tokenizer, most_tokens=self._tokens)
