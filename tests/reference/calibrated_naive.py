"""GPTQ and AWQ one column at a time, in float64 NumPy, after the papers."""

import numpy as np


def grid_of(weights):
  """Scale and zero point of one group of one row."""
  low, high = 0.0, 0.0
  for w in weights:
    low, high = min(low, w), max(high, w)
  if low == high:
    low, high = -1.0, 1.0
  scale = (high - low) / 15
  return scale, float(min(max(np.rint(-low / scale), 0), 15))


def nearest_code(weight, scale, zero):
  return min(max(np.rint(weight / scale) + zero, 0), 15)


def rounding(matrix, group):
  """Code, scale and zero of each entry, rounded by itself."""
  matrix = np.asarray(matrix, np.float64)
  code, scale, zero = np.zeros((3, *matrix.shape))
  rows, columns = matrix.shape
  for r in range(rows):
    for start in range(0, columns, group):
      stop = min(start + group, columns)
      s, z = grid_of(matrix[r, start:stop])
      for c in range(start, stop):
        code[r, c] = nearest_code(matrix[r, c], s, z)
        scale[r, c], zero[r, c] = s, z
  return code, scale, zero


def gptq(matrix, second_moment, group, damping=0.01):
  """The same by optimal brain surgery: the inverse shrinks at every step."""
  left = np.array(matrix, np.float64)
  hessian = np.array(second_moment, np.float64)
  code, scale, zero = np.zeros((3, *left.shape))
  rows, columns = left.shape
  added = damping * np.mean(np.diag(hessian))
  for c in range(columns):
    if hessian[c, c] == 0:
      left[:, c], hessian[c, c] = 0, 1
    else:
      hessian[c, c] += added
  for c in range(columns):
    # The inverse over the columns that are still free, c and later.
    inverse = np.linalg.inv(hessian[c:, c:])
    for r in range(rows):
      if c % group == 0:
        s, z = grid_of(left[r, c:c + group])
        scale[r, c:c + group], zero[r, c:c + group] = s, z
      s, z = scale[r, c], zero[r, c]
      code[r, c] = nearest_code(left[r, c], s, z)
      error = left[r, c] - (code[r, c] - z) * s
      for later in range(c, columns):
        left[r, later] -= error * inverse[0, later - c] / inverse[0, 0]
  return code, scale, zero


def gptq_by_size(matrix, second_moment, group, damping=0.01):
  """The same on columns sorted by their diagonal, and put back."""
  order = sorted(
      range(len(second_moment)), key=lambda c: -second_moment[c, c])
  found = gptq(matrix[:, order], second_moment[order][:, order], group, damping)
  back = [order.index(c) for c in range(len(order))]
  return [field[:, back] for field in found]


def error_of(difference, second_moment):
  """Mean squared output error of a difference of weights."""
  total = 0.0
  for row in np.asarray(difference, np.float64):
    total += row @ np.asarray(second_moment, np.float64) @ row
  return total


def clip(matrix, second_moment, group):
  """The matrix, each group of a row clipped for its own least error."""
  matrix = np.array(matrix, np.float64)
  for row in matrix:
    for start in range(0, len(row), group):
      part = slice(start, start + group)
      best = None
      for step in range(10):
        limit = max(abs(row[part])) * (1 - step / 20)
        tried = np.array([min(max(x, -limit), limit) for x in row[part]])
        code, scale, zero = rounding(tried[None], group)
        error = error_of((code - zero) * scale - row[part],
                         second_moment[part, part])
        if best is None or error < best[0]:
          best = error, tried
      row[part] = best[1]
  return matrix


def input_scales(mean_abs, alpha):
  """mean|x|^alpha, such that largest times smallest is 1."""
  share = np.asarray(mean_abs, np.float64) / max(mean_abs)
  scales = np.array([max(x ** alpha, 1e-4) for x in share])
  return scales / np.sqrt(max(scales) * min(scales))


def best_alpha(matrix, second_moment, mean_abs, group, grid):
  """The alpha on the grid whose rounding errs least."""
  matrix, best = np.asarray(matrix, np.float64), None
  for step in range(grid):
    scales = input_scales(mean_abs, step / grid)
    code, scale, zero = rounding(matrix * scales, group)
    error = error_of((code - zero) * scale / scales - matrix, second_moment)
    if best is None or error < best[0]:
      best = error, step / grid
  return best[1]


def awq(matrix, second_moment, mean_abs, group, grid):
  """Code, scale and zero for the best alpha on the grid."""
  alpha = best_alpha(matrix, second_moment, mean_abs, group, grid)
  scales = input_scales(mean_abs, alpha)
  code, scale, zero = rounding(np.asarray(matrix, np.float64) * scales, group)
  return code, scale / scales, zero
