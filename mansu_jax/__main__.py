"""The console script, and `python -m mansu_jax`: hears signals at once."""

from __future__ import annotations

from mansu_jax.runtime import preemption


def run() -> None:
  """Runs `main`, whose imports take a tenth of a second."""
  preemption.hear()
  from mansu_jax import main  # pylint: disable=g-import-not-at-top
  main.run()


if __name__ == '__main__':
  run()
