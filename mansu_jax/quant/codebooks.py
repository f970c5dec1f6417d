"""The 16-entry code books of bitsandbytes.

Source: bitsandbytes 0.50.2 (Dettmers et al. 2023, "QLoRA: Efficient Finetuning
of Quantized LLMs", arXiv 2305.14314, for NF4). Each decimal is the shortest
that rounds to its float32 value.
"""

from __future__ import annotations

import numpy as np

# Code -> value. NF4 codes ascend with the value.
NF4 = np.array([
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343,
    -0.091050036, 0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524,
    0.44070983, 0.562617, 0.72295684, 1.0], np.float32)

# FP4 codes are a sign bit and a magnitude; codes 0 and 8 are both zero.
FP4 = np.array([
    0.0, 0.0052083335, 0.6666667, 1.0, 0.33333334, 0.5, 0.16666667, 0.25,
    0.0, -0.0052083335, -0.6666667, -1.0, -0.33333334, -0.5, -0.16666667,
    -0.25], np.float32)

# Rank by value -> code. Small negative values round to the zero of code 0,
# small positive values to the zero of code 8.
NF4_ORDER = np.arange(16, dtype=np.uint8)
FP4_ORDER = np.array(
    [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3], np.uint8)


def midpoints(table: np.ndarray, order: np.ndarray) -> np.ndarray:
  """float32 thresholds [len(table) - 1] between neighbouring values."""
  values = table[order]
  return (values[:-1] + values[1:]) / np.float32(2)
