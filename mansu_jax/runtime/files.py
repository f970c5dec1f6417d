"""Files written to a temporary name and renamed: one that is there is whole.

Of several processes the first writes; all must ask.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

import numpy as np

from mansu_jax.runtime import processes

UNFINISHED = '.orbax-checkpoint-tmp'  # In a name while Orbax is writing.


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a whole file or nothing."""
  def write():
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)

  processes.broadcast_from_primary(write)


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes compressed arrays by name, without pickles."""
  def write():
    temporary = path.with_name(f'.{path.name}.tmp')
    with open(temporary, 'wb') as file:
      np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)

  processes.broadcast_from_primary(write)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes strict JSON: NaN and infinity are refused."""
  write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')
