"""Headers are read as the gguf package reads them; hostile ones refused."""

import struct
import tracemalloc

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import numpy as np

from mansu_jax.models.io import gguf_header
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import gguf_tokenizer
from mansu_jax.models.io import loading
from tests.models import tiny
from tests.models.io import gguf_fuzz

_U8, _U32, _STRING, _ARRAY, _F32 = 0, 4, 8, 9, 0


def _text(text):
  return struct.pack('<Q', len(text)) + text


def _pair(key, kind, value):
  return _text(key) + struct.pack('<I', kind) + value


def _array(kind, count, elements=b''):
  return struct.pack('<IQ', kind, count) + elements


def _tensor(name, shape=(8,), kind=_F32, offset=0):
  return _text(name) + struct.pack(
      f'<I{len(shape)}QIQ', len(shape), *shape, kind, offset)


def _file(pairs=(), tensors=(), data=64, counts=None, version=3):
  header = b'GGUF' + struct.pack(
      '<IQQ', version, *(counts or (len(tensors), len(pairs))))
  header += b''.join(pairs) + b''.join(tensors)
  return np.frombuffer(header + bytes(-len(header) % 32 + data), np.uint8)


def _align(value):
  return [_pair(b'general.alignment', _U32, struct.pack('<I', value))]


def _nested(depth):
  value = _array(_U8, 1, b'x')
  for _ in range(depth - 1):
    value = _array(_ARRAY, 1, value)
  return [_pair(b'a', _ARRAY, value)]


class HeaderTest(parameterized.TestCase):

  @parameterized.parameters(*range(5))
  def test_reads_what_the_package_reads(self, number):
    path = tiny.temp_dir(self) / 'x.gguf'
    path.write_bytes(gguf_fuzz.bases()[number].data)
    got, want = gguf_io.open_file(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in want.fields.items()
              if not key.startswith('GGUF.') and key != 'x.nested'}
    self.assertEqual({key: list(value) if hasattr(value, 'itemsize') else value
                      for key, value in got.metadata.items()
                      if key != 'x.nested'}, fields)
    self.assertEqual([(t.name, t.kind, t.shape, t.start, t.size)
                      for t in got.tensors],
                     [(t.name, t.tensor_type, tuple(t.shape.tolist()[::-1]),
                       t.data_offset, t.n_bytes) for t in want.tensors])
    for ours, theirs in zip(got.tensors, want.tensors):
      np.testing.assert_array_equal(
          got.stored(ours), theirs.data.view(np.uint8))

  def test_values_by_hand(self):
    pairs = [
        _pair(b'a', _ARRAY, _array(_ARRAY, 2, _array(_U8, 2, b'\1\2')
                                   + _array(_STRING, 1, _text(b'x')))),
        _pair(b'none', _ARRAY, _array(_STRING, 0)),
        *_align(64)]
    header = gguf_header.read(_file(pairs, [_tensor(b't', (3, 5))]))
    (numbers, texts) = header.metadata['a']
    self.assertEqual((list(numbers), texts), ([1, 2], ['x']))
    self.assertEqual(header.metadata['none'], [])
    (tensor,) = header.tensors
    self.assertEqual((tensor.shape, tensor.size, tensor.start % 64),
                     ((5, 3), 60, 0))

  @parameterized.parameters(1, 4)
  def test_limits_are_allowed(self, depth):
    gguf_header.read(_file(_nested(depth), version=2))

  @parameterized.named_parameters(
      ('bytes', {'pairs': [_pair(b'a', _ARRAY, _array(_U8, 2**40))]},
       "value of 'a' needs 1099511627776 bytes at byte 49, but"),
      ('numbers', {'pairs': [_pair(b'a', _ARRAY, _array(_U32, 2**62))]},
       "value of 'a' needs 18446744073709551616 bytes"),
      ('strings', {'pairs': [_pair(b'a', _ARRAY, _array(_STRING, 2**40))]},
       "1099511627776 strings in the value of 'a'"),
      ('long_strings', {'pairs': [_pair(b'a', _ARRAY, _array(
          _STRING, 2, _text(b'x') + struct.pack('<Q', 2**63)))]},
       "value of 'a' has 2 strings, but string 1 goes beyond"),
      ('arrays', {'pairs': [_pair(b'a', _ARRAY, _array(_ARRAY, 2**40))]},
       "1099511627776 arrays in the value of 'a'"),
      ('string', {'pairs': [_pair(b'a', _STRING, struct.pack('<Q', 2**63))]},
       "value of 'a' needs 9223372036854775808 bytes"),
      ('depth', {'pairs': _nested(5)}, 'arrays nested over 4 deep'),
      ('keys', {'counts': (0, 2**40)}, '1099511627776 keys at byte 24'),
      ('tensors', {'counts': (2**40, 0)}, '1099511627776 tensors at byte 24'),
      ('two_keys', {'pairs': 2 * [_pair(b'a', _U8, b'x')]},
       "two values of the key 'a'"),
      ('key', {'pairs': [_pair(b'a\n', _U8, b'x')]}, 'the key .a.n. at byte'),
      ('value_type', {'pairs': [_pair(b'a', 13, b'x')]}, 'unknown type 13'),
      ('element_type', {'pairs': [_pair(b'a', _ARRAY, _array(13, 0))]},
       'elements of the unknown type 13'),
      ('utf_8', {'pairs': [_pair(b'a', _STRING, _text(b'\xff'))]},
       "value of 'a' that is not UTF-8"),
      ('utf_8_inside', {'pairs': [_pair(b'a', _ARRAY, _array(
          _STRING, 2, _text(b'x') + _text(b'\xff')))]},
       "value of 'a', string 1, that is not UTF-8"),
      ('alignment', {'pairs': _align(24)}, '= 24, wanted a power of two'),
      ('no_alignment', {'pairs': _align(0)}, '= 0, wanted a power of two'),
      ('far_alignment', {'pairs': _align(2**31), 'tensors': [_tensor(b't')]},
       "tensor 't' ends at byte 2147483680, the file at"),
      ('tensor_name', {'tensors': [_tensor(b't' * 65)]}, 'wanted at most 64'),
      ('two_names', {'tensors': [_tensor(b't'), _tensor(b't', offset=32)]},
       "two tensors of the name 't'"),
      ('axes', {'tensors': [_tensor(b't', (1,) * 5)]}, 'of 5 axes'),
      ('no_axes', {'tensors': [_tensor(b't', ()) + b'12345678']}, 'of 0 axes'),
      ('overflow', {'tensors': [_tensor(b't', (2**32, 2**32))]},
       "'t' ends at byte 73786976294838206560, the file at"),
      ('empty', {'tensors': [_tensor(b't', (0, 4))]}, r'of the shape \(4, 0\)'),
      ('blocks', {'tensors': [_tensor(b't', (31,), 2)]},
       r'of the shape \(31,\), wanted rows of a multiple of 32 for Q4_0'),
      ('type', {'tensors': [_tensor(b't', kind=99)]}, 'of the unknown type 99'),
      ('offset', {'tensors': [_tensor(b't', offset=64)]}, 'ends at byte'),
      ('misaligned', {'tensors': [_tensor(b't', offset=16)]},
       'at the offset 16, wanted a multiple of 32'),
      ('overlap', {'tensors': [_tensor(b't', (9,)), _tensor(b'u', offset=32)]},
       "tensors 't' and 'u' overlap"),
      ('version', {'version': 1}, r'GGUF version 1, wanted one of \(2, 3\)'),
      ('big_endian', {'version': 3 << 24}, 'big-endian.*gguf-convert-endian'))
  def test_refuses(self, parts, message):
    data = _file(**parts)
    tracemalloc.start()
    self.addCleanup(tracemalloc.stop)
    with self.assertRaisesRegex(ValueError, message) as caught:
      gguf_header.read(data)
    self.assertLess(tracemalloc.get_traced_memory()[1], 100_000)
    self.assertNotIn('\n', str(caught.exception))

  def test_memory_is_proportional_to_the_file(self):
    data = _file([_pair(b'a', _ARRAY, _array(_U8, 10**6, bytes(10**6)))])
    tracemalloc.start()
    self.addCleanup(tracemalloc.stop)
    self.assertLen(gguf_header.read(data).metadata['a'], 10**6)
    self.assertLess(tracemalloc.get_traced_memory()[1], 3 * 10**6)


class LoadTest(parameterized.TestCase):

  def _refused(self, message, **kwargs):
    path = tiny.temp_dir(self) / 'x.gguf'
    tiny.write_gguf(path, tiny.config(), tiny.params(tiny.config()), **kwargs)
    with self.assertRaisesRegex(ValueError, message) as caught:
      loading.load(path)
    self.assertNotIn('\n', str(caught.exception))

  def test_a_part_of_a_split_model(self):
    self._refused('one of 2 parts of a model.*llama-gguf-split --merge',
                  extra={'split.count': 2})

  def test_widths_that_no_tensor_has(self):
    self._refused("config, which has .'num_heads . d_head': 4294967296.; "
                  'wanted at most 104', extra={
                      'llama.attention.key_length': 2**30})

  @parameterized.parameters(
      ({'vocab': tiny.VOCAB[:-1] + ['zqx'], 'merges': ['zq x']},
       "104 tokens, 104 of them distinct, and 1 invalid merges .*'zq', 'x'"),
      ({'kinds': tiny.KINDS[1:]}, 'an array of 103 as token types'),
      ({'vocab': tiny.KINDS}, 'an array of 104 as tokens'),
      ({'vocab': ['a:b:c', *tiny.VOCAB[1:]], 'add_bos': True,
        'bos_and_eos': (0, 1)},
       'vocabulary in .*x.gguf gives no tokenizer .*a:b:c'),
      ({'add': lambda writer: writer.add_uint32('tokenizer.chat_template', 1)},
       'chat_template = 1; wanted text'))
  def test_vocabularies(self, changes, message):
    self._refused(message, **changes)

  def test_add_bos_without_a_bos_token_is_refused(self):
    with self.assertRaisesRegex(
        ValueError, 'f has add_bos_token but no BOS token'):
      gguf_tokenizer.build({'tokenizer.ggml.' + key: value for key, value in (
          ('model', 'gpt2'), ('pre', 'gpt-2'), ('tokens', ['a']),
          ('merges', []), ('token_type', [1]), ('add_bos_token', True))}, 'f')


if __name__ == '__main__':
  absltest.main()
