"""How much is measured, and how certainly."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field, _check = fields.field, fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """How much is measured, and with what certainty."""

  questions: int = _field(
      300, 'Questions a split at most (0: all), drawn evenly over facts.')
  kept_questions: int = _field(
      0, 'As --eval_questions, for the splits of what is kept, retain and'
      ' retain_heldout (0: as there).')
  text_windows: int = _field(48, 'Windows of each kind of text at most.')
  batch_tokens: int = _field(512, 'Tokens in one evaluation batch.')
  calibration_tokens: int = _field(
      4096, 'Tokens of calibration text at most, in windows of 128.')
  bootstrap: int = _field(
      2000, 'Bootstrap resamples, by fact.', most=fields.MOST_DRAWS)
  generations: int = _field(6, 'Sample questions answered freely.')
  cad_pairs: int = _field(32, 'Pairs for CAD and AS-NC (0: skip).')
  lens_questions: int = _field(
      320, 'Retain questions that readability\'s lens is fitted on (0: skip).')

  def __post_init__(self):
    fields.check_fields(self, 'eval')
    fields.check_least(self, 'eval', 0, 'questions', 'kept_questions',
                 'text_windows', 'generations', 'cad_pairs',
                 'lens_questions')
    fields.check_least(self, 'eval', 1, 'batch_tokens', 'calibration_tokens')
    _check(self.cad_pairs != 1, '--eval_cad_pairs=1 cannot be resampled;'
           ' wanted 2 or more, or 0 to skip CAD and AS-NC.')
    _check(self.bootstrap >= 100, f'--eval_bootstrap={self.bootstrap} is too'
           ' few; wanted at least 100 resamples.')
