"""Quantizers weight by weight in NumPy, after the written rules."""

import numpy as np

f32 = np.float32

NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0)
FP4_VALUES = (
    0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408,
    0.5, 0.1666666716337204, 0.25)


def _nf4_entries():
  """[(value, code)] in order of value."""
  return [(f32(v), code) for code, v in enumerate(NF4_VALUES)]


def _fp4_entries():
  entries = [(f32(v), code) for code, v in enumerate(FP4_VALUES)]
  entries += [(f32(-v), code + 8) for code, v in enumerate(FP4_VALUES) if v]
  # The second zero is reached from above.
  entries.append((f32(0.0), 8))
  return sorted(entries, key=lambda entry: (entry[0], entry[1]))


ENTRIES = {'nf4': _nf4_entries(), 'fp4': _fp4_entries()}


def codebook(matrix, name, block=64):
  """Codes, scales and decoded values of one torch [out, in] matrix.

  Returns:
    code, scale (expanded to weights) and value, each of the matrix's shape.
  """
  flat = np.asarray(matrix, f32).reshape(-1)
  entries = ENTRIES[name]
  code = np.zeros(flat.size, np.uint8)
  scale, value = np.zeros(flat.size, f32), np.zeros(flat.size, f32)
  for start in range(0, flat.size, block):
    stop = min(start + block, flat.size)
    absmax = max(abs(flat[i]) for i in range(start, stop))
    for i in range(start, stop):
      if stop - start == block:
        s = flat[i] * (f32(1) / max(absmax, f32(1e-38)))
      else:
        s = flat[i] / absmax if absmax > 0 else f32(0)
      place = 0
      for k in range(15):
        if s > (entries[k][0] + entries[k + 1][0]) / f32(2):
          place = k + 1
      code[i], scale[i] = entries[place][1], absmax
      value[i] = entries[place][0] * absmax
  return [x.reshape(matrix.shape) for x in (code, scale, value)]


def integer(matrix, largest, group=None):
  """The same of symmetric integers along the input; codes from 0."""
  matrix = np.asarray(matrix, f32)
  code = np.zeros(matrix.shape, np.uint8)
  scale, value = np.zeros(matrix.shape, f32), np.zeros(matrix.shape, f32)
  rows, columns = matrix.shape
  group = group or columns
  for r in range(rows):
    for start in range(0, columns, group):
      stop = min(start + group, columns)
      absmax = max(abs(matrix[r, c]) for c in range(start, stop))
      step = absmax / f32(largest)
      for c in range(start, stop):
        x = matrix[r, c] / step if step > 0 else f32(0)
        q = min(max(int(np.rint(x)), -largest), largest)  # Ties to even.
        code[r, c], scale[r, c] = q + largest, absmax
        value[r, c] = f32(q) * step
  return code, scale, value


def quantize(matrix, name):
  """Code, scale and value of a [out, in] matrix under a scheme's name."""
  kind, _, size = name.partition('_')
  size = int(size[1:]) if size else None
  if kind in ENTRIES:
    return codebook(matrix, kind, size or 64)
  return integer(matrix, 127) if name == 'int8' else integer(
      matrix, 7, size or 128)


def value_at(x, scale, name, partial=False):
  """Decoded value of one number in a block of given absmax."""
  x, scale = f32(x), f32(scale)
  if name in ENTRIES:
    s = x / scale if partial else x * (f32(1) / max(scale, f32(1e-38)))
    values = [value for value, _ in ENTRIES[name]]
    place = 0
    for k in range(15):
      if s > (values[k] + values[k + 1]) / f32(2):
        place = k + 1
    return values[place] * scale
  largest = 127 if name == 'int8' else 7
  step = scale / f32(largest)
  return f32(min(max(int(np.rint(x / step)), -largest), largest)) * step


def interval(x, scale, name):
  """Ends of the interval around x in which its decoded value stays."""
  x, scale = f32(x), f32(scale)
  if name in ENTRIES:
    values = sorted({value for value, _ in ENTRIES[name]})
  else:
    largest = 127 if name == 'int8' else 7
    values = [f32(q) / f32(largest) for q in range(-largest, largest + 1)]
  now = min(range(len(values)), key=lambda k: abs(values[k] * scale - value_at(
      x, scale, name)))
  middle = lambda a, b: (float(a) + float(b)) / 2 * float(scale)
  lo = middle(values[now - 1], values[now]) if now else -np.inf
  last = now == len(values) - 1
  return lo, np.inf if last else middle(values[now], values[now + 1])
