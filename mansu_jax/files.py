"""Files written to a temporary name and renamed: one that is there is whole."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a whole file or nothing."""
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_text(text, encoding='utf-8')
  os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes strict JSON: NaN and infinity are refused."""
  write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')
