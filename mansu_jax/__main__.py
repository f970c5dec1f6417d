"""Entry point of `python -m mansu_jax` and of the console script."""

from __future__ import annotations

from mansu_jax.runtime import preemption


def run() -> None:
  """Handles signals at once, before the slow import of `main`."""
  preemption.install_handlers()
  from mansu_jax import main  # pylint: disable=g-import-not-at-top
  main.run()


if __name__ == '__main__':
  run()
