"""Damaged GGUF files, made from (seed, index) alone, for `fuzz`."""

import dataclasses
import functools
import pathlib
import random
import tempfile

import gguf

from mansu_jax.models import config as config_lib
from mansu_jax.models.io import gguf_writer
from mansu_jax.models.io import loading
from tests.models import tiny
from tests.models.io import byte_changes
from tests.models.io import gguf_convert

SEED = 18
_VOCAB = ['<s>', '</s>', 't', 'h', 'Ġ', 'é', '1', 'th', '<a>']
_KINDS = [3, 3, 1, 1, 1, 1, 1, 1, 4]
_PIECES = ['<unk>', '<s>', '</s>', '▁', 'a', 'b', 'ab', '▁ab', '  ']
_PIECE_KINDS = [2, 3, 3, 1, 1, 1, 1, 1, 4]
_SMALL = {'vocab_size': len(_VOCAB), 'hidden_size': 8, 'intermediate_size': 8,
          'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 4}
# Models of other families, with SentencePiece vocabularies.
_OTHERS = (
    {'model_type': 'phi3', **_SMALL, 'partial_rotary_factor': 0.5,
     'sliding_window': 3, 'original_max_position_embeddings': 48,
     'rope_scaling': {'rope_type': 'longrope', 'long_factor': [4.0],
                      'short_factor': [1.5]}},
    {'model_type': 'gemma3_text', **_SMALL, 'query_pre_attn_scalar': 4,
     'sliding_window': 3})
_LLAMA3 = config_lib.RopeScaling(
    kind='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position=8192)
_HOSTILE = (0, 1, 2, 3, 7, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1,
            2**32, 2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


@dataclasses.dataclass(frozen=True)
class Base:
  """An undamaged file.

  Attributes:
    data: its bytes.
    header: bytes before the tensors' data.
    fields: (byte, size) of each number in the header.
  """

  data: bytes
  header: int
  fields: list[tuple[int, int]]


@functools.cache
def bases() -> tuple[Base, ...]:
  """Files with all value types, storage formats, tokenizers and scalings."""
  changes = {'vocab_size': len(_VOCAB), 'd_model': 8, 'num_layers': 2,
             'num_heads': 2, 'num_kv_heads': 1, 'd_head': 4, 'd_ff': 8,
             'bos_token_id': 0, 'eos_token_id': 1}
  plain = tiny.config(**changes)
  wide = tiny.config(**changes | {
      'd_model': 32, 'd_ff': 32, 'd_head': 16, 'tie_embeddings': False})
  no_text = tiny.config(**changes | {
      'bos_token_id': None, 'eos_token_id': None, 'rope_scaling': _LLAMA3})
  vocabulary = {'vocab': _VOCAB, 'kinds': _KINDS, 'merges': ['t h']}
  with tempfile.TemporaryDirectory() as folder:
    files = [pathlib.Path(folder) / f'{i}.gguf' for i in range(5)]
    tiny.write_gguf(
        files[0], plain, tiny.params(plain), add_bos=True, pre='llama-bpe',
        bos_and_eos=(0, 1), add=_add_all_types, **vocabulary)
    tiny.write_gguf(files[1], wide, tiny.params(wide), bos_and_eos=(0, 1),
                    raw=_quantized(wide), **vocabulary)
    gguf_writer.write(files[2], no_text, tiny.params(no_text), None)
    for file, fields in zip(files[3:], _OTHERS):
      source = file.with_suffix('')
      cfg, _ = gguf_convert.make(source, fields)
      gguf_convert.convert(source, file, cfg, fields, _add_pieces)
    return tuple(map(_base, files))


def _add_pieces(writer: gguf.GGUFWriter) -> None:
  writer.add_tokenizer_model('llama')
  writer.add_token_list(_PIECES)
  writer.add_token_scores([-float(i) for i in range(len(_PIECES))])
  writer.add_token_types(_PIECE_KINDS)
  writer.add_add_bos_token(True)
  writer.add_add_eos_token(True)
  if writer.arch == 'gemma3':
    writer.add_sliding_window_pattern([True, False])


def _add_all_types(writer: gguf.GGUFWriter) -> None:
  for name in ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'uint64',
               'int64', 'float32', 'float64', 'bool'):
    getattr(writer, f'add_{name}')(f'x.{name}', 1)
  writer.add_array('x.languages', ['en', 'dé'])
  writer.add_array('x.floats', [1.0, 2.0])
  writer.add_array('x.bytes', b'abc')
  writer.add_array('x.nested', [[[1, 2], [3]], [[4]]])
  writer.add_chat_template('{{ messages }}')


def _quantized(cfg: config_lib.ModelConfig) -> dict[str, tuple]:
  """Two tensors in each of six formats."""
  names = [n for n, rows in tiny.gguf_tensors(cfg, tiny.params(cfg)).items()
           if rows.ndim == 2]
  rows = tiny.gguf_tensors(cfg, tiny.params(cfg))
  kinds = [getattr(gguf.GGMLQuantizationType, name) for name in (
      'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q8_0')]
  return {name: (gguf.quantize(rows[name], kind), kind)
          for name, kind in zip(names, 2 * kinds)}


def _base(path: pathlib.Path) -> Base:
  """Finds the numbers by the package's reader, not by ours."""
  reader = gguf.GGUFReader(path)
  fields = []
  for field in (*reader.fields.values(), *(t.field for t in reader.tensors)):
    at = field.offset
    for part in field.parts:
      if part.size == 1 or part.dtype.itemsize == 8:  # Numbers and shapes.
        size = part.dtype.itemsize
        fields += [(at + i * size, size) for i in range(part.size)]
      at += part.nbytes
  return Base(path.read_bytes(), reader.data_offset, sorted(set(fields)))


def mutate(index: int, seed: int = SEED) -> tuple[bytes, str]:
  """A damaged file, and how it was made."""
  rng = random.Random(f'{seed}/{index}')
  number = rng.randrange(len(bases()))
  base, data, done = bases()[number], bytearray(bases()[number].data), []
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    change = rng.choices(_CHANGES, _WEIGHTS)[0]
    done.append(change(rng, base, data))
  return bytes(data), f'base {number}: {"; ".join(done)}'


def _set_number(rng, base, data):
  at, size = rng.choice(base.fields)
  old = int.from_bytes(data[at:at + size], 'little')
  new = rng.choice((
      rng.choice(_HOSTILE), rng.choice(_HOSTILE), rng.randrange(48), old + 1,
      old - 1, old * 2, old ^ 1 << rng.randrange(8 * size), old * 256,
      len(data) - at, len(data) - at - size, rng.getrandbits(8 * size)))
  new %= 2**(8 * size)
  data[at:at + size] = new.to_bytes(size, 'little')
  return f'{size} bytes at {at}: {old} -> {new}'


def _swap_numbers(rng, base, data):
  (a, size), (b, other) = rng.choice(base.fields), rng.choice(base.fields)
  size = min(size, other)
  data[a:a + size], data[b:b + size] = data[b:b + size], data[a:a + size]
  return f'{size} bytes at {a} and {b} swapped'


def _bytes(change):
  """A change of bytes, mostly in the header."""
  return lambda rng, base, data: change(rng, data, base.header)


def _splice(rng, base, data):
  other = rng.choice(bases())
  return byte_changes.splice(rng, data, base.header, other.data, other.header)


_CHANGES = (_set_number, _swap_numbers, *map(_bytes, (
    byte_changes.flip, byte_changes.set_byte, byte_changes.truncate,
    byte_changes.insert, byte_changes.delete)), _splice)
_WEIGHTS = (10, 1, 3, 3, 1, 2, 2, 2)


def write(data: bytes, path: pathlib.Path) -> None:
  path.write_bytes(data)


def load(path: pathlib.Path) -> None:
  loading.find(str(path)).load()
