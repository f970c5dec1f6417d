"""Damaged GGUF files, loaded as a user would: a model, or one clear line.

Every mutation is made from (seed, index) alone. By hand:

  python -m tests.models.io.gguf_fuzz --first=0 --count=1000000

prints how many files loaded and were refused, and each failure: another
exception than ValueError, a message of several lines, a warning, over a second
of CPU time, over 100 MB of memory, or a process that died. `--first=INDEX
--count=1 --keep=FILE` repeats one and keeps its file.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import gguf

from mansu_jax.models import config as config_lib
from mansu_jax.models.io import gguf_writer
from mansu_jax.models.io import loading
from tests.models import tiny

SEED = 18
MOST_SECONDS, MOST_BYTES = 1.0, 100 * 2**20
_KILL_SECONDS = 20  # Of CPU time: the process is in a loop.
_CHUNK = 100_000  # Mutations of a process.
_LONGEST_MESSAGE = 2000
_VOCAB = ['<s>', '</s>', 't', 'h', 'Ġ', 'é', '1', 'th', '<a>']
_KINDS = [3, 3, 1, 1, 1, 1, 1, 1, 4]
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
    files = [pathlib.Path(folder) / f'{i}.gguf' for i in range(3)]
    tiny.write_gguf(
        files[0], plain, tiny.params(plain), add_bos=True, pre='llama-bpe',
        bos_and_eos=(0, 1), add=_add_all_types, **vocabulary)
    tiny.write_gguf(files[1], wide, tiny.params(wide), bos_and_eos=(0, 1),
                    raw=_quantized(wide), **vocabulary)
    gguf_writer.write(files[2], no_text, tiny.params(no_text), None)
    return tuple(map(_base, files))


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
    change = rng.choices(
        (_set_number, _swap_numbers, _flip, _set_byte, _truncate, _insert,
         _delete, _splice), (10, 1, 3, 3, 1, 2, 2, 2))[0]
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


def _place(rng, base, data):
  """Mostly in the header."""
  end = len(data) if rng.random() < 0.1 else min(base.header, len(data))
  return rng.randrange(end) if end else 0


def _flip(rng, base, data):
  at, bit = _place(rng, base, data), rng.randrange(8)
  data[at:at + 1] = bytes(x ^ 1 << bit for x in data[at:at + 1])
  return f'bit {bit} of byte {at} flipped'


def _set_byte(rng, base, data):
  at, new = _place(rng, base, data), rng.choice(b'\0\1\n 0a.\x7f\x80\xff')
  data[at:at + 1] = bytes([new])
  return f'byte {at} = {new}'


def _truncate(rng, base, data):
  at = _place(rng, base, data)
  del data[at:]
  return f'cut at {at}'


def _insert(rng, base, data):
  at, size = _place(rng, base, data), rng.choice((1, 4, 8, 12, 32, 100))
  data[at:at] = rng.randbytes(size)
  return f'{size} random bytes before {at}'


def _delete(rng, base, data):
  at, size = _place(rng, base, data), rng.choice((1, 4, 8, 12, 32, 100))
  del data[at:at + size]
  return f'{size} bytes at {at} deleted'


def _splice(rng, base, data):
  """Bytes of any base over this one's, or between them."""
  other = rng.choice(bases())
  start, at = _place(rng, other, other.data), _place(rng, base, data)
  size, over = rng.randrange(1, 200), rng.random() < 0.5
  part = other.data[start:start + size]
  data[at:at + (len(part) if over else 0)] = part
  return f'{len(part)} bytes from {start} {"over" if over else "before"} {at}'


def judge(path: pathlib.Path) -> tuple[str, str]:
  """Loads a file: (`loaded` | `refused` | `failed`, why it failed)."""
  started = time.process_time()
  try:
    with warnings.catch_warnings(action='error'):
      loading.find(str(path)).load()
    outcome, why = 'loaded', ''
  except ValueError as error:
    message = str(error)
    clear = '\n' not in message and len(message) <= _LONGEST_MESSAGE
    outcome, why = ('refused', '') if clear else ('failed', repr(message))
  except BaseException as error:  # pylint: disable=broad-except
    outcome, why = 'failed', f'{type(error).__name__}: {error}'
  seconds = time.process_time() - started
  if seconds > MOST_SECONDS:
    return 'failed', f'{seconds:.1f} s of CPU time; {outcome} {why}'
  return outcome, why


def try_one(path: pathlib.Path, index: int) -> tuple[str, str]:
  """Judges one mutation; the path is written to."""
  data, how = mutate(index)
  path.write_bytes(data)
  outcome, why = judge(path)
  return outcome, f'mutation {index} of seed {SEED} ({how}): {why}'


def _work(first: int, count: int) -> None:
  """Tries a range within the limits; prints the counts as JSON."""
  counts, failures = {'loaded': 0, 'refused': 0, 'failed': 0}, []
  memory = '/dev/shm' if os.path.isdir('/dev/shm') else None  # No disk.
  with tempfile.TemporaryDirectory(dir=memory) as folder:
    path = pathlib.Path(folder) / 'x.gguf'
    for base in bases():  # All that is imported and compiled once.
      path.write_bytes(base.data)
      loading.find(str(path)).load()
      judge(path)
    _limit_memory()
    for index in range(first, first + count):
      print(index, file=sys.stderr)  # The last one is where it died.
      signal.setitimer(signal.ITIMER_PROF, _KILL_SECONDS)
      outcome, why = try_one(path, index)
      counts[outcome] += 1
      if outcome == 'failed':
        failures.append(why)
  print(json.dumps({'counts': counts, 'failures': failures}))


def _limit_memory() -> None:
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  most = pages * resource.getpagesize() + MOST_BYTES
  resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(first: int, count: int) -> tuple[dict[str, int], list[str]]:
  """Tries a range in processes of their own: (counts, failures)."""
  total, failures, end = {}, [], first + count
  while first < end:
    size = min(_CHUNK, end - first)
    got, seen = _one_process(first, size)
    if got is None:  # It died at `seen`; what came before is tried again.
      failures.append(
          f'the process died at mutation {seen} of seed {SEED}'
          f' ({mutate(seen)[1]})')
      size = seen - first
      got = _one_process(first, size)[0] if size else None
      size += 1
    for key, value in (got['counts'] if got else {}).items():
      total[key] = total.get(key, 0) + value
    failures += got['failures'] if got else []
    first += size
    print(f'to {first}: {total}, {len(failures)} failures', flush=True)
  return total, failures


def _one_process(first: int, count: int) -> tuple[dict | None, int]:
  """What a process found, or None; and the last mutation that it began."""
  with tempfile.TemporaryFile('w+') as errors:
    done = subprocess.run(
        [sys.executable, '-m', 'tests.models.io.gguf_fuzz', '--work',
         f'--first={first}', f'--count={count}'],
        stdout=subprocess.PIPE, stderr=errors, text=True, check=False,
        cwd=pathlib.Path(__file__).parents[3], env=os.environ | {
            'JAX_PLATFORMS': 'cpu', 'MALLOC_ARENA_MAX': '1',
            'TOKENIZERS_PARALLELISM': 'false'})
    errors.seek(0)
    lines = errors.read().splitlines()
  seen = [int(line) for line in lines if line.isdigit()]
  if not seen:
    raise RuntimeError('no mutation was tried: ' + ' '.join(lines[-5:]))
  if done.returncode:
    return None, seen[-1]
  return json.loads(done.stdout.splitlines()[-1]), seen[-1]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--first', type=int, default=0)
  parser.add_argument('--count', type=int, default=1000)
  parser.add_argument('--keep', help='file for the mutation `first`')
  parser.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.work:
    _work(options.first, options.count)
    return
  if options.keep:
    pathlib.Path(options.keep).write_bytes(mutate(options.first)[0])
  _, failures = run(options.first, options.count)
  print('\n'.join(failures))
  sys.exit(bool(failures))


if __name__ == '__main__':
  main()
