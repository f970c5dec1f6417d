"""Tokenizers of Hugging Face directories."""

from __future__ import annotations

from collections.abc import Mapping
import json
import pathlib

from mansu_jax import types
from mansu_jax.runtime import messages

# One of these holds a tokenizer.
_FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json')
# Beside it.
_OTHERS = ('merges.txt', 'tokenizer_config.json', 'special_tokens_map.json',
           'added_tokens.json', 'chat_template.jinja', 'chat_template.json')
_TEMPLATES = 'additional_chat_templates'  # Folder of the named ones.
_MOST_BYTES = 2**28
_REMEDY = {
    True: 'Download them again.',
    False: 'Without one, transformers may need the package sentencepiece or'
           ' tiktoken: where these are installed, load the tokenizer with'
           ' AutoTokenizer, and save it with `save_pretrained`.'}


def read(path: pathlib.Path) -> types.PretrainedTokenizer | None:
  """Reads the tokenizer of a directory; None if it has no tokenizer files.

  Raises:
    ValueError: transformers cannot read the tokenizer files.
  """
  if not is_in(path):
    return None
  import transformers  # pylint: disable=g-import-not-at-top

  # The plain class uses tokenizer.json unchanged and, unlike AutoTokenizer,
  # imports no torch.
  plain = (path / _FILES[0]).is_file()
  name = 'PreTrainedTokenizerFast' if plain else 'AutoTokenizer'
  try:
    cls = getattr(transformers, name)
    return cls.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=False)
  except BaseException as error:  # transformers raises many kinds here.
    if not isinstance(error, Exception) and (
        type(error).__name__ != 'PanicException'):  # Of `tokenizers`, in Rust.
      raise
    raise ValueError(
        f'The tokenizer files in {path} cannot be read'
        f' ({messages.one_line(str(error))}); wanted a tokenizer.json that'
        f' transformers loads. {_REMEDY[plain]}') from error


def is_in(path: pathlib.Path) -> bool:
  """Whether a directory has a tokenizer."""
  return any((path / name).is_file() for name in _FILES)


def read_files(path: pathlib.Path) -> dict[str, bytes]:
  """The tokenizer files of a directory, by their paths within it.

  Raises:
    ValueError: a file is over 256 MiB.
  """
  found = [path / name for name in (*_FILES, *_OTHERS)
           if (path / name).is_file()]
  found += sorted((path / _TEMPLATES).glob('*.jinja'))
  for file in found:
    if (size := file.stat().st_size) > _MOST_BYTES:
      raise ValueError(
          f'{file} has {size} bytes; wanted a tokenizer file of at most'
          f' {_MOST_BYTES}. Remove it, or download it again.')
  return {file.relative_to(path).as_posix(): file.read_bytes()
          for file in found}


def write(
    path: pathlib.Path, tokenizer: types.PretrainedTokenizer | None,
    files: Mapping[str, bytes]) -> None:
  """Writes a tokenizer.

  Args:
    path: Existing directory.
    tokenizer: To write; None writes the files only.
    files: Of the directory that it was read from, to be kept byte for byte; but
      without a tokenizer.json among them, those that transformers saves.

  Raises:
    OSError: the disk is full, or the directory is not writable.
  """
  for name, content in files.items():
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(content)
  if tokenizer is not None and _FILES[0] not in files:
    _save(path, tokenizer)  # Its settings are those of the tokenizer.json.


def _save(
    path: pathlib.Path, tokenizer: types.PretrainedTokenizer) -> None:
  try:
    tokenizer.save_pretrained(str(path))
  except Exception as error:
    if type(error) is Exception:  # pylint: disable=unidiomatic-typecheck
      raise OSError(  # `tokenizers` raises no other.
          f'The tokenizer cannot be written ({error})') from error
    raise
  # transformers 5 renamed the class; versions 4 and 5 accept the old name.
  file = path / 'tokenizer_config.json'
  fields = json.loads(file.read_text('utf-8'))
  if fields.get('tokenizer_class') == 'TokenizersBackend':
    fields['tokenizer_class'] = 'PreTrainedTokenizerFast'
    file.write_text(json.dumps(fields, indent=2) + '\n')
