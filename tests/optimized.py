"""Tests whose programs are compiled as users' are, against `conftest`."""

from absl.testing import parameterized
import jax

_FAST = 'jax_disable_most_optimizations'


class TestCase(parameterized.TestCase):
  """Compiles well what its tests run."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    jax.clear_caches()
    cls.addClassCleanup(jax.clear_caches)
    cls.addClassCleanup(jax.config.update, _FAST, jax.config.read(_FAST))
    jax.config.update(_FAST, False)
