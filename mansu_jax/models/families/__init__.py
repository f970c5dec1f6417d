"""The families of decoders, by the `model_type` of their `config.json`.

Each module of this package with a `FAMILY` is one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models.families import family
from mansu_jax.runtime import messages
from mansu_jax.runtime import registry

FAMILIES: dict[str, family.Family] = {
    one.model_type: one for one in registry.find(__name__, 'FAMILY').values()}


def from_hf(
    fields: family.Fields, where: str, ignore: Collection[str] = ()
) -> config_lib.ModelConfig:
  """Builds a config from the fields of a Hugging Face `config.json`.

  Args:
    fields: Parsed file.
    where: Path of the file, for messages.
    ignore: Unknown fields to ignore.

  Raises:
    ValueError: the family is another, or as `Family.from_hf`.

  Example:
    >>> config = from_hf({
    ...     'model_type': 'llama', 'vocab_size': 97, 'hidden_size': 16,
    ...     'intermediate_size': 32, 'num_hidden_layers': 2,
    ...     'num_attention_heads': 4}, 'config.json')
    >>> config.d_head, config.num_kv_heads, config.eos_token_id
    (4, 4, 2)
    >>> from_hf(to_hf(config, 'float32'), 'config.json') == config
    True
  """
  kind = fields.get('model_type', 'llama')
  found = FAMILIES.get(kind) if isinstance(kind, str) else None
  if found is None:
    known = ', '.join(f'{name} ({one.members})'
                      for name, one in FAMILIES.items())
    raise ValueError(
        f'{where} has `model_type: {messages.bare(kind)}`; wanted one of those'
        f' that this version supports: {known}. {_remedy(fields, kind)}')
  return found.from_hf(fields, where, ignore)


def _remedy(fields: family.Fields, kind: Any) -> str:
  """What the user of an unsupported model can do."""
  if any('expert' in str(name) for name in fields):
    return ('Its MLPs are mixtures of experts, which are not implemented: use a'
            ' dense model.')
  inner = fields.get('text_config')
  text = isinstance(inner, dict) and inner.get('model_type', f'{kind}_text')
  if isinstance(text, str) and text in FAMILIES:
    return ('It reads more than text: save its language model'
            f' (`model_type: {text}`) with transformers as a model of its own,'
            ' and give that.')
  return 'Use another model.'


def naming(config: config_lib.ModelConfig) -> assemble.Naming:
  """How the Hugging Face files of a model hold its leaves."""
  return FAMILIES[config.family].naming


def to_hf(config: config_lib.ModelConfig, dtype: str) -> dict[str, Any]:
  """Builds a `config.json`; see `Family.to_hf`."""
  return FAMILIES[config.family].to_hf(config, dtype)
