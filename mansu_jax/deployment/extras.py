"""Optional packages that the deployment engines import where they use them."""

from __future__ import annotations

from collections.abc import Sequence
import importlib.util

# Extra of setup.py -> packages that it installs for the engines here.
PACKAGES = {
    'parity': ('torch', 'bitsandbytes', 'accelerate'),
    'llamacpp': ('llama_cpp',),
}
_NOTES = {'llamacpp': ' (compiles llama.cpp for minutes; needs cmake and a C++'
                      ' compiler)'}


def require(extras: Sequence[str], *, alternative: str = '') -> None:
  """Checks that the packages of some extras are installed.

  Args:
    extras: Keys of `PACKAGES`.
    alternative: Sentence on how to do without them; appended to the error.

  Raises:
    ValueError: A package is missing. The message names every missing package
      and the extra that installs it.
  """
  remedies = []
  for extra in extras:
    missing = [name for name in PACKAGES[extra]
               if importlib.util.find_spec(name) is None]
    if missing:
      remedies.append(f'{", ".join(missing)}: run `pip install -e'
                      f" '.[{extra}]'`{_NOTES.get(extra, '')}")
  if remedies:
    raise ValueError(' '.join(filter(None, (
        f'Packages are not installed: {"; ".join(remedies)}.', alternative))))
