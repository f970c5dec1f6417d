"""llama.cpp's quantizers weight by weight in NumPy, as its C loops go."""

import numpy as np

f32, f16 = np.float32, np.float16


def quantize(matrix, name):
  """Codes and decoded values of a [out, in] matrix."""
  cut = 256 if name in ('q4_k', 'q6_k') else 32
  blocks = np.asarray(matrix, f32).reshape(-1, cut)
  code, value = np.zeros(blocks.shape, np.uint8), np.zeros(blocks.shape, f32)
  for i, block in enumerate(blocks):
    code[i], value[i] = _KINDS[name](block)
  return code.reshape(matrix.shape), value.reshape(matrix.shape)


def _signed_max(block, bits):
  half = 2**(bits - 1)
  largest = max(block, key=abs)  # The first of several.
  step = largest / f32(-half)
  inverse = f32(1) / step if step else f32(0)
  code = [min(int(x * inverse + f32(half + 0.5)), 2 * half - 1) for x in block]
  return code, [f32(c - half) * f32(f16(step)) for c in code]


def _offset(block):
  low, high = min(block), max(block)
  step = (high - low) / f32(15)
  inverse = f32(1) / step if step else f32(0)
  code = [min(int((x - low) * inverse + f32(0.5)), 15) for x in block]
  return code, [f32(c) * f32(f16(step)) + f32(f16(low)) for c in code]


def _rounded(block):
  step = max(map(abs, block)) / f32(127)
  inverse = f32(1) / step if step else f32(0)
  integers = []
  for x in block:
    size = abs(x * inverse)
    whole = int(size + f32(0.5)) if size < 2**22 else int(size)
    integers.append(int(np.sign(x)) * whole)
  return [q + 128 for q in integers], [f32(q) * f32(f16(step))
                                       for q in integers]


def _nearest(x, low, high):
  return min(max(int(np.rint(f32(x))), low), high)


def _fit_offset(x, weight):
  """make_qkx2_quants(32, 15, ..., -1, 0.1, 20)."""
  low, high = min(f32(0), min(x)), max(x)
  if high == low:
    return f32(0), -low
  sum_w, sum_x = f32(0), f32(0)
  for w, v in zip(weight, x):
    sum_w, sum_x = sum_w + w, sum_x + w * v
  inverse = f32(15) / (high - low)
  scale, best = f32(1) / inverse, f32(0)
  for w, v in zip(weight, x):
    miss = scale * f32(_nearest(inverse * (v - low), 0, 15)) + low - v
    best += w * (miss * miss)
  for step in range(21):
    inverse = (f32(-1) + f32(0.1) * f32(step) + f32(15)) / (high - low)
    code = [f32(_nearest(inverse * (v - low), 0, 15)) for v in x]
    sum_l, sum_l2, sum_xl = f32(0), f32(0), f32(0)
    for w, v, c in zip(weight, x, code):
      sum_l, sum_l2, sum_xl = (
          sum_l + w * c, sum_l2 + w * c * c, sum_xl + w * c * v)
    determinant = sum_w * sum_l2 - sum_l * sum_l
    if determinant <= 0:
      continue
    new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    if new_low > 0:
      new_low, new_scale = f32(0), sum_xl / sum_l2
    error = f32(0)
    for w, v, c in zip(weight, x, code):
      miss = new_scale * c + new_low - v
      error += w * (miss * miss)
    if error < best:
      best, scale, low = error, new_scale, new_low
  return scale, -low


def _q4_k(block):
  scales, depths = [], []
  for x in block.reshape(8, 32):
    squares = f32(0)
    for v in x:
      squares += v * v
    rms = np.sqrt(squares / f32(32))
    scale, depth = _fit_offset(x, [rms + abs(v) for v in x])
    scales.append(scale)
    depths.append(depth)
  most, deepest = max(f32(0), *scales), max(f32(0), *depths)
  code, value = [], []
  for x, scale, depth in zip(block.reshape(8, 32), scales, depths):
    level = min(_nearest(f32(63) / most * scale, 0, 99) if most else 0, 63)
    deep = min(_nearest(f32(63) / deepest * depth, 0, 99) if deepest else 0, 63)
    step = f32(f16(most / f32(63))) * f32(level)
    offset = f32(f16(deepest / f32(63))) * f32(deep)
    for v in x:
      c = _nearest((v + offset) / step, 0, 15) if step else 0
      code.append(c)
      value.append(step * f32(c) - offset)
  return code, value


def _fit_signed(x):
  """make_qx_quants(16, 32, ..., 1, NULL)."""
  largest = max(x, key=abs)
  if abs(largest) < 1e-15:
    return f32(0)
  scale = quality = f32(0)
  for step in (0, *range(-9, 0), *range(1, 10)):
    inverse = -(f32(32) + f32(0.1) * f32(step)) / largest
    along, square = f32(0), f32(0)
    for v in x:
      c, w = f32(_nearest(inverse * v, -32, 31)), v * v
      along, square = along + w * v * c, square + w * c * c
    if square > 0 and (not step or along * along > quality * square):
      scale = along / square
      quality = scale * along
  return scale


def _q6_k(block):
  scales = [_fit_signed(x) for x in block.reshape(16, 16)]
  most = max(scales, key=abs)
  if abs(most) < 1e-15:
    return [32] * 256, [f32(0)] * 256
  inverse = f32(-128) / most
  stored = f32(f16(f32(1) / inverse))
  code, value = [], []
  for x, scale in zip(block.reshape(16, 16), scales):
    step = stored * f32(min(127, _nearest(inverse * scale, -999, 999)))
    for v in x:
      c = _nearest(v / step, -32, 31) if step else 0
      code.append(c + 32)
      value.append(step * f32(c))
  return code, value


_KINDS = {
    'q4_0': lambda block: _signed_max(block, 4),
    'q5_0': lambda block: _signed_max(block, 5),
    'q4_1': _offset, 'q8_0': _rounded, 'q4_k': _q4_k, 'q6_k': _q6_k}
