"""Which files play which role."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import fields

_field, _check = fields.field, fields.check


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Which files play which role; `shipped:NAME` is a file of the package."""

  forget: tuple[str, ...] = _field(
      (), 'Question file(s) (JSONL) to forget; `shipped:NAME` is a file of the'
      ' package, and NAME may hold * and ?. Required to unlearn.')
  retain: tuple[str, ...] = _field(
      (), 'Question file(s) to retain. Required to unlearn.')
  heldout: tuple[str, ...] = _field(
      (), 'Question file(s) never trained on, to measure what is lost.')
  text: tuple[str, ...] = _field(
      (), 'General text (.txt, or JSONL with text and kind) to retain.')
  heldout_text: tuple[str, ...] = _field(
      (), 'General text never trained on, for perplexity.')
  calibration: tuple[str, ...] = _field(
      (), 'General text that calibrated quantizers (gptq_g128, awq_g128) see;'
      ' the shipped retain text by default.')
  text_window: int = _field(64, 'Tokens in one window of general text.')
  chat: bool = _field(
      False, 'Ask facts as a user\'s turn of the model\'s chat template, which'
      ' the answer follows: in training, pairs and evaluation. Prompts that'
      ' hold its special tokens, and general text, stay as they are. Also'
      ' --chat.')

  def __post_init__(self):
    fields.check_fields(self, 'data')
    _check(self.text_window >= 8, f'--data_text_window={self.text_window} is'
           ' too short; wanted 8 or more tokens.')
