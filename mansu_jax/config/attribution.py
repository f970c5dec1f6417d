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
  pairs: str = _field(
      '64', 'How many clean/corrupted prompt pairs to make of the forget set,'
      ' as many as there are, if fewer; or a JSONL file of pairs.')
  batch: int = _field(
      16, 'Pairs in one batch, at most: fewer where a device has less memory.')
  skip_unequal: bool = _field(
      False, 'Leave out the pairs of a file whose prompts differ in token'
      ' length, and say how many; without it they are an error.')

  def __post_init__(self):
    fields.check_fields(self, 'attribution')
    _check(self.pairs_file or not self.skip_unequal,
           '--attribution_skip_unequal is for pairs of a file, but'
           f' --attribution_pairs={self.pairs} makes some of questions, equally'
           ' long; leave it out.')
    fields.check_least(self, 'attribution', 1, 'steps', 'batch')
    _check(self.pairs != '', '--attribution_pairs is empty; wanted a number of'
           ' pairs, or a JSONL file of pairs.')
    most = fields.MOST
    counted = self.pairs.isdecimal() and len(self.pairs) <= len(str(most))
    _check(1 <= int(self.pairs) <= most if counted else
           not (self.pairs.isdecimal() or self.pairs.startswith('-')),
           f'--attribution_pairs={self.pairs[:40]}: wanted at least 1 pair and'
           f' at most {most:,}, or a JSONL file of pairs.')

  @property
  def most_pairs(self) -> int | None:
    """How many pairs to make; None where they come from a file."""
    return int(self.pairs) if self.pairs.isdecimal() else None

  @property
  def pairs_file(self) -> str:
    """The file of pairs; empty where they are made."""
    return '' if self.pairs.isdecimal() else self.pairs
