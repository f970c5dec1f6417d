"""Damaged Hugging Face directories, made from (seed, index), for `fuzz`.

Changed are the values of JSON (configs, indices, tokenizers, headers of weight
files), bytes, and files: missing, empty, exchanged, links that go round or out.
"""

import copy
import dataclasses
import functools
import json
import pathlib
import random
import shutil
import struct
import tempfile

import numpy as np

from mansu_jax.models.io import edit_file
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from tests.models import tiny
from tests.models import tiny_tokenizers
from tests.models.io import byte_changes
from tests.models.io import gguf_convert

SEED = 19
_EDIT = 'edit.safetensors'
_INDEX = 'model.safetensors.index.json'
_ROUND = object()  # A file that links to itself.
_FOLDER = object()  # A folder in place of a file.
_TWICE = '@twice@'  # A key that is renamed in the text.
_SPECIAL = ['<s>', '</s>', '<|user|>', '<|end|>']
_SMALL = {'vocab_size': 364, 'hidden_size': 8, 'intermediate_size': 8,
          'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 4,
          'bos_token_id': 1, 'eos_token_id': [2, 3]}
# Fields of `config.json`, and the GB of a shard.
_MODELS = (
    ({'model_type': 'llama', **_SMALL, 'rope_scaling': {
        'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
        'high_freq_factor': 4.0, 'original_max_position_embeddings': 32}}, 1),
    ({'model_type': 'qwen3', **_SMALL, 'tie_word_embeddings': False}, 1e-5),
    ({'model_type': 'gemma3_text', **_SMALL, 'query_pre_attn_scalar': 4,
      'sliding_window': 3}, 1),
    ({'model_type': 'gpt2', 'n_embd': 8, 'n_layer': 2, 'n_head': 2,
      'n_positions': 64, 'vocab_size': 364}, 1))
_HOSTILE = (
    None, True, False, -1, 0, 1, 2, 3, 2**15, 2**31 - 1, 2**31, 2**32, 2**40,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 0.5, -1.0, 1e308, 1e-320,
    float('nan'), float('inf'), '', 'x', 'a\nb', '\0', '\ud800', '\x1b[31m',
    'x' * 3000, '..', '../x.safetensors', '/etc/passwd', _INDEX, 'F8_E4M3',
    'F4', 'BOOL', 'I64', 'F64', [], {}, [[]], [None], ['a\n'], {'a': {}},
    [0] * 3000, {str(i): i for i in range(300)}, '{{ x }', '{% for %}')


@dataclasses.dataclass(frozen=True)
class Base:
  """An undamaged directory: the bytes of its files by name."""

  data: dict[str, bytes]


@functools.cache
def bases() -> tuple[Base, ...]:
  """Models of four families, with all kinds of files, and an edit."""
  made = []
  byte_level = tiny_tokenizers.byte_level(
      _SPECIAL, bos='<s>', template='{{ messages[0]["content"] }}')
  pieces = tiny_tokenizers.sentencepiece(_SPECIAL, prefix='each', bos='<s>')
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    for i, (fields, shard_gb) in enumerate(_MODELS):
      cfg, weights = gguf_convert.make(root / str(i), fields)
      hf_io.write(
          root / str(i), cfg, weights, (byte_level, pieces, None)[i % 3],
          export_dtype=('bfloat16', 'float32')[i % 2], shard_gb=shard_gb,
          generation={'temperature': 1.0})
      made.append(_read(root / str(i)))
    made[-1] = _as_gpt2(made[-1])
    made[2] = _with_rotary_parts(made[2])
    after = tiny.params(cfg, seed=5)
    after['embed'] = weights['embed']
    (root / 'edit').mkdir()
    edit_file.write(root / 'edit' / _EDIT, cfg, weights, after, 'float32')
    made.append(_read(root / 'edit'))
  return tuple(map(Base, made))


def _as_gpt2(files: dict[str, bytes]) -> dict[str, bytes]:
  """The files with the vocabulary as GPT-2 has it, without tokenizer.json."""
  model = json.loads(files['tokenizer.json'])['model']
  merges = ''.join(' '.join(pair) + '\n' for pair in model['merges'])
  return {name: data for name, data in files.items()
          if name != 'tokenizer.json'} | {
              'vocab.json': json.dumps(model['vocab']).encode(),
              'merges.txt': f'#version: 0.2\n{merges}'.encode(),
              'tokenizer_config.json': b'{"tokenizer_class": "GPT2Tokenizer"}'}


def _with_rotary_parts(files: dict[str, bytes]) -> dict[str, bytes]:
  """The files with a config as newer versions of transformers write it."""
  fields = json.loads(files['config.json'])
  parts = {
      'sliding_attention': {'rope_theta': fields.pop('rope_local_base_freq')},
      'full_attention': {'rope_theta': fields.pop('rope_theta'),
                         'rope_type': 'linear', 'factor': 2.0}}
  del fields['rope_scaling']
  fields |= {'rope_parameters': parts}
  return files | {'config.json': json.dumps(fields).encode()}


def _read(folder: pathlib.Path) -> dict[str, bytes]:
  return {x.name: x.read_bytes() for x in sorted(folder.iterdir())}


def mutate(index: int, seed: int = SEED) -> tuple[dict, str]:
  """The files of a damaged directory, and how it was made."""
  rng = random.Random(f'{seed}/{index}')
  number = rng.randrange(len(bases()))
  files, done = dict(bases()[number].data), []
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    name = rng.choice(sorted(files) or [None])
    if not isinstance(files.get(name), bytes):
      continue
    change = rng.choices((_values, _bytes, _whole), (10, 4, 1))[0]
    done.append(f'{name}: {change(rng, files, name)}')
  return files, f'base {number}: {"; ".join(done)}'


def write(files: dict, path: pathlib.Path) -> None:
  shutil.rmtree(path, ignore_errors=True)
  path.mkdir()
  for name, data in files.items():
    if data is _ROUND:
      (path / name).symlink_to(name)
    elif data is _FOLDER:
      (path / name).mkdir()
    elif isinstance(data, str):
      (path / name).symlink_to(data)
    else:
      (path / name).write_bytes(data)


def load(path: pathlib.Path) -> None:
  if (path / _EDIT).exists():
    edit_file.read(path / _EDIT)
  else:
    loading.find(str(path)).load()


def _values(rng, files, name):
  """Changes values of JSON, the header of weights included."""
  data = files[name]
  if not name.endswith('.safetensors'):
    files[name], done = _change_json(rng, data)
    return done
  if len(data) < 8:
    return 'nothing'
  (length,) = struct.unpack('<Q', data[:8])
  header, rest = data[8:8 + length], data[8 + length:]
  if rng.random() < 0.1:
    new = rng.choice((0, 1, 7, length - 1, length + 1, len(data), len(data) - 8,
                      10**8, 2**32, 2**63, 2**64 - 1)) % 2**64
    files[name] = struct.pack('<Q', new) + header + rest
    return f'length {length} -> {new}'
  header, done = _change_json(rng, header)
  if rng.random() < 0.1:
    rest = rest[rng.randrange(len(rest) + 1):]
  files[name] = struct.pack('<Q', len(header)) + header + rest
  return done


def _change_json(rng, data):
  try:
    tree = json.loads(data)
  except (ValueError, RecursionError):
    return data, 'nothing'
  if rng.random() < 0.02:
    deep = (b'[' * 10**5, b'{"a":' * 10**5, b'9' * 5000)
    return rng.choice(deep), 'deep'
  places = list(_places(tree))
  if not places:
    return data, 'nothing'
  # Half the changes are near the root, where few of the places are.
  if rng.random() < 0.5:
    places = [p for p in places if len(p) <= 2] or places
  *parents, key = rng.choice(places)
  holder = tree
  for step in parents:
    holder = holder[step]
  old, twice = holder[key], None
  change = rng.choice(('set', 'set', 'set', 'copy', 'scale', 'delete', 'rename',
                       'twice'))
  if change == 'set':
    holder[key] = copy.deepcopy(rng.choice(_HOSTILE))
  elif change == 'copy':
    holder[key] = copy.deepcopy(_at(tree, rng.choice(list(_places(tree)))))
  elif change == 'scale' and type(old) in (int, float):
    holder[key] = rng.choice((old + 1, old - 1, old * 2, -old, old // 2))
  elif change == 'delete':
    del holder[key]
  elif isinstance(holder, dict):
    new = rng.choice(('x', 'a\nb', '', '\ud800', 'x' * 3000, *map(str, holder)))
    twice = key if change == 'twice' else None
    if twice is None:
      holder[new] = holder.pop(key)
    else:
      holder[_TWICE] = copy.deepcopy(rng.choice(list(holder.values())))
  text = json.dumps(tree)
  if twice is not None:
    text = text.replace(json.dumps(_TWICE), json.dumps(twice))
  return text.encode(), f'{change} {[*parents, key]} of {str(old)[:40]!r}'


def _places(tree, above=()):
  """Yields the path of each value below the root."""
  pairs = (tree.items() if isinstance(tree, dict) else
           enumerate(tree) if isinstance(tree, list) else ())
  for key, value in pairs:
    yield (*above, key)
    if len(above) < 4:
      yield from _places(value, (*above, key))


def _at(tree, path):
  for step in path:
    tree = tree[step]
  return tree


def _bytes(rng, files, name):
  """Changes bytes, of weights mostly in the header."""
  data, spare = bytearray(files[name]), rng.choice(
      list(rng.choice(bases()).data.values()))
  end = len(data)
  if name.endswith('.safetensors') and end >= 8:
    end = min(end, 8 + struct.unpack('<Q', data[:8])[0])
  change = rng.choices(
      (byte_changes.flip, byte_changes.set_byte, byte_changes.truncate,
       byte_changes.insert, byte_changes.delete, byte_changes.splice),
      (3, 3, 1, 2, 2, 2))[0]
  more = (spare, len(spare)) if change is byte_changes.splice else ()
  done = change(rng, data, end, *more)
  files[name] = bytes(data)
  return done


def _whole(rng, files, name):
  """Changes a file as a whole."""
  other = rng.choice(sorted(files))
  change = rng.choice(('missing', 'empty', 'round', 'folder', 'link', 'rename',
                       'exchange', 'other', 'zeros'))
  if change == 'missing':
    del files[name]
  elif change == 'rename':
    files[rng.choice((other, 'x', 'model.safetensors', 'tokenizer.model',
                      'vocab.json', 'merges.txt', 'added_tokens.json',
                      'pytorch_model.bin'))] = files.pop(name)
  elif change == 'exchange':
    files[name], files[other] = files[other], files[name]
  else:
    files[name] = {
        'empty': b'', 'round': _ROUND, 'folder': _FOLDER, 'link': rng.choice(
            (other, '..', '/dev/null', '../none')),
        'other': rng.choice(list(rng.choice(bases()).data.values())),
        'zeros': bytes(np.uint8(0) for _ in range(100))}[change]
  return f'{change} {other}'
