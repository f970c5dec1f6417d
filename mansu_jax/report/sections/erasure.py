"""Structural erasure: has the knowledge gone, or only the answer?"""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report.sections import copy_back
from mansu_jax.report.sections import divergence
from mansu_jax.report.sections import hidden_share
from mansu_jax.report.sections import readability

Record = dict[str, Any]


def section(record: Record) -> document.Section:
  """The hidden share, CAD and AS-NC, readability, and copy-back."""
  return document.Section('Structural erasure', (
      *hidden_share.blocks(record), *divergence.blocks(record),
      *readability.blocks(record), *copy_back.blocks(record)))
