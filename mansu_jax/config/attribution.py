"""EAP-IG: pairs, path steps and nodes."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field, _check = fields.field, fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributionConfig:
  """EAP-IG: which pairs, how many path steps, which nodes."""

  level: str = _field(
      'neuron_and_head', 'What is scored and edited: MLP neurons, attention'
      ' heads, both, or the slices that read and write the connections of these'
      ' (edge).',
      ('neuron', 'head', 'neuron_and_head', 'edge'))
  steps: int = _field(5, 'Integrated-gradient steps M.')
  pairs: int = _field(
      64, 'Clean/corrupted prompt pairs to make from the forget set, or as many'
      ' as it allows. Unused with --attribution_pairs_file.')
  pairs_file: str = _field(
      '', 'JSONL file of attribution pairs to use instead of pairs made from'
      ' the forget set.')
  batch: int = _field(
      16, 'Pairs in one batch, at most: fewer where a device has less memory.')
  skip_unequal: bool = _field(
      False, 'Leave out the pairs of a file whose prompts differ in token'
      ' length, and say how many; without it they are an error.')

  def __post_init__(self):
    fields.check_fields(self, 'attribution')
    fields.check_least(self, 'attribution', 1, 'steps', 'pairs', 'batch')
    default = type(self).pairs
    _check(not self.pairs_file or self.pairs == default,
           f'--attribution_pairs={self.pairs} counts pairs made from questions,'
           f' but --attribution_pairs_file={self.pairs_file} gives the pairs;'
           ' set only one of them.')
    _check(self.pairs_file or not self.skip_unequal,
           '--attribution_skip_unequal applies to --attribution_pairs_file only:'
           ' pairs made from questions always have equal length. Leave it out.')

  @property
  def max_pairs(self) -> int | None:
    """Number of pairs to make; None when `pairs_file` gives them."""
    return None if self.pairs_file else self.pairs
