"""Damaged headers of weight files are named: which tensor, which number."""

import json
import struct
import tracemalloc

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.models.io import hf_files
from mansu_jax.models.io import safetensors_header
from mansu_jax.runtime import messages
from tests.models import tiny


def _entry(start=0, end=8, shape=(2,), dtype='F32'):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, end]}


def _bytes(header, data=16, length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text) if length is None else length) + (
      text + bytes(data))


_TWO = {'a': _entry(), 'b': _entry(8, 16)}
_REPEATED = json.dumps(_TWO)[:-1].encode() + b', "a": ' + json.dumps(
    _entry()).encode() + b'}'


class SafetensorsHeaderTest(parameterized.TestCase):

  def test_reads_a_file(self):
    path = tiny.temp_dir(self) / 'x.safetensors'
    path.write_bytes(_bytes({'__metadata__': {'a': '1'}, **_TWO, 'c': _entry(
        16, 16, (0, 3))}))
    with hf_files.open_file(path) as handle:
      self.assertCountEqual(handle.keys(), ['a', 'b', 'c'])

  @parameterized.named_parameters(
      ('no_length', b'1234567', 'header needs 8 bytes, but the file has 7'),
      ('header_longer_than_the_file', _bytes(_TWO, length=10**6),
       'a header of 1000000 bytes, but 1.. are left'),
      ('gigantic_header', _bytes(_TWO, length=2**64 - 1),
       'a header of 18446744073709551615 bytes'),
      ('repeated', _bytes(_REPEATED), "two entries of the name 'a'"),
      ('overlap', _bytes({'a': _entry(), 'b': _entry(4, 12)}, 12),
       "tensors 'a' and 'b' overlap"),
      ('hole', _bytes({'a': _entry(), 'b': _entry(12, 20)}, 20),
       "4 bytes before the tensor 'b' belong to no tensor"),
      ('too_little_data', _bytes(_TWO, 15),
       'the tensors have 16 bytes, but 15 are left'),
      ('too_much_data', _bytes(_TWO, 17), 'but 17 are left'),
      ('gigantic_shape', _bytes({'a': _entry(shape=(2**40, 2**40))}, 8),
       r"'a' of the shape \[1099511627776, 1099511627776\] in F32 needs"
       ' 4835703278458516698824704 bytes, but has 8'),
      ('gigantic_offset', _bytes({'a': _entry(0, 2**62)}, 8),
       'needs 8 bytes, but has 4611686018427387904'),
      ('backwards', _bytes({'a': _entry(8, 0)}, 8), 'but has -8'),
      ('name', _bytes({'a\n\x1b[31m': _entry()}, 8),
       r"name 'a\\n\\x1b\[31m', wanted at most 256 printable"),
      ('surrogate', _bytes({'\ud800': _entry()}, 8), r"name '\\ud800', wanted"),
      ('long_name', _bytes({'a' * 10**5: _entry()}, 8), r'aaa\.\.\.aaa'),
      ('type', _bytes({'a': _entry(dtype='F12')}, 8), 'unknown variant `F12`'),
      ('float', _bytes({'a': _entry(shape=(2.0,))}, 8), 'floating point `2.0`'),
      ('negative', _bytes({'a': _entry(shape=(-1,))}, 8), 'integer `-1`'),
      ('text', _bytes(b'{"a"'), 'invalid JSON'),
      ('deep', _bytes(b'{"a":' + b'[' * 10**5), 'recursion limit'),
      ('bytes', _bytes(b'\xff'), 'UTF-8'),
      ('list', _bytes(b'[1]'), 'sequence'))
  def test_refuses(self, data, message):
    path = tiny.temp_dir(self) / 'x.safetensors'
    path.write_bytes(data)
    with self.assertRaisesRegex(
        ValueError, rf'x.safetensors .{len(data)} bytes. cannot be read as'
        rf' safetensors .*{message}.*; wanted a complete file.*download it'
        ) as caught:
      hf_files.open_file(path)
    text = str(caught.exception)
    self.assertTrue(text.isprintable(), text)
    self.assertLess(len(text), 1000)

  def test_long_headers_are_refused_before_they_are_read(self):
    path = tiny.temp_dir(self) / 'x.safetensors'
    with open(path, 'wb') as file:
      file.write(struct.pack('<Q', 2**30))
      file.truncate(2**30 + 8)  # Sparse: no bytes on the disk.
    tracemalloc.start()
    self.addCleanup(tracemalloc.stop)
    with self.assertRaisesRegex(ValueError, 'wanted at most 33554432'):
      safetensors_header.check(path)
    self.assertLess(tracemalloc.get_traced_memory()[1], 100_000)

  def test_messages_are_short_and_on_one_line(self):
    for value in ('a\nb' * 1000, {'x' * 1000: [0] * 10**4}, 10**4000):
      self.assertLess(len(messages.shorten(value)), 200)
      self.assertTrue(messages.shorten(value).isprintable())
    self.assertEqual(messages.bare('llama'), 'llama')
    self.assertLess(len(messages.one_line('ab\n' * 10**4)), 610)


if __name__ == '__main__':
  absltest.main()
