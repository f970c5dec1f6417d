"""Configuration of the data files."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=fields.RUN_MODES)
_measured = functools.partial(fields.field, modes=fields.EVALUATION_MODES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Data files by role; `shipped:NAME` is a file of the package."""

  forget: tuple[str, ...] = _field(
      (), 'JSONL file of questions to forget. May be repeated. `shipped:NAME`'
      ' is a file of the package; its NAME may contain the wildcards * and ?.'
      ' Required to unlearn and to plan.')
  retain: tuple[str, ...] = _field(
      (), 'JSONL file of questions to retain. May be repeated. Required to'
      ' unlearn and to plan.')
  heldout: tuple[str, ...] = _measured(
      (), 'JSONL file of questions that are never trained on. They measure side'
      ' effects. May be repeated.')
  unknown: tuple[str, ...] = _measured(
      (), 'JSONL file of questions about facts that the base never knew.'
      ' Attacks teach half of them and ask the other half, as a control. May be'
      ' repeated.')
  text: tuple[str, ...] = fields.field(
      (), 'General text to retain: a .txt file, or JSONL with the fields text'
      ' and kind. May be repeated.', modes=fields.TRAINING_MODES)
  heldout_text: tuple[str, ...] = _measured(
      (), 'General text that is never trained on, to measure perplexity. May be'
      ' repeated.')
  calibration: tuple[str, ...] = _measured(
      (), 'General text for the calibrated quantizers, gptq_g128 and awq_g128.'
      ' May be repeated. Default: the shipped retain text.')
  text_window: int = _measured(
      64, 'Tokens in a window of general text, at least 8.')
  chat: bool = _field(
      False, 'Ask each question as a user turn of the model\'s chat template,'
      ' and expect the answer as the assistant turn, in training, attribution'
      ' and evaluation. General text, and prompts that already contain the'
      ' template\'s special tokens, stay unchanged. Same as --chat.')

  def __post_init__(self):
    fields.check_fields(self, 'data')
    fields.check(
        self.text_window >= 8, f'--data_text_window={self.text_window} is too'
        ' short; wanted at least 8 tokens.')
