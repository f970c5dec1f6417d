"""Configuration of attribution by EAP-IG."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=fields.RUN_MODES)
_check = fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributionConfig:
  """EAP-IG: prompt pairs, integration steps and scored components."""

  level: str = _field(
      'neuron_and_head', 'Components that are scored: MLP neurons (neuron),'
      ' attention heads (head), both (neuron_and_head), or the edges between'
      ' them (edge). At level edge, unlearning edits the weights that read and'
      ' write the selected edges.',
      ('neuron', 'head', 'neuron_and_head', 'edge'))
  steps: int = _field(
      5, 'Integration steps of the integrated gradients.')
  pairs: int = _field(
      64, 'Largest number of clean/corrupted prompt pairs to make from the'
      ' forget set. --attribution_pairs_file overrides it.')
  pairs_file: str = _field(
      '', 'JSONL file of attribution pairs. It replaces the pairs made from the'
      ' forget set.')
  batch: int = _field(
      16, 'Largest number of pairs in a batch. A device with little memory gets'
      ' smaller batches.')
  skip_unequal: bool = _field(
      False, 'Skip pairs of --attribution_pairs_file whose two prompts differ'
      ' in token length, and report their number. By default such a pair is an'
      ' error.')

  def __post_init__(self):
    fields.check_fields(self, 'attribution')
    fields.check_minimum(self, 'attribution', 1, 'steps', 'pairs', 'batch')
    _check(self.pairs_file or not self.skip_unequal,
           '--attribution_skip_unequal applies to --attribution_pairs_file'
           ' only: pairs made from questions always have equal length. Leave'
           ' it out.')

  @property
  def max_pairs(self) -> int | None:
    """Number of pairs to make; None if `pairs_file` gives them."""
    return None if self.pairs_file else self.pairs
