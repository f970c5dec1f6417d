"""Configuration of an edit that is made again, or taken back."""

from __future__ import annotations

import dataclasses
import functools

from mansu_jax.config import fields

_field = functools.partial(fields.field, modes=('apply',))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApplyConfig:
  """The edit of a run, and its direction."""

  edit: str = _field(
      '', 'The edit.safetensors of a run: its moved weights. Short form: --edit.'
      ' Required for --mode=apply.')
  reverse: bool = _field(
      False, 'Take the edit back: --base is the unlearned model, and the model'
      ' before unlearning is written.')

  def __post_init__(self):
    fields.check_fields(self, 'apply')
