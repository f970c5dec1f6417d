"""What an MLP reads and adds, against the taps of the whole model."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.models import decoder
from mansu_jax.models import mlp_states
from mansu_jax.models import sites
from tests.models import tiny

_KINDS = (('plain', {}), *tiny.LAYER_KINDS)
_find = jax.jit(mlp_states.find, static_argnums=(0, 3))


class MlpStatesTest(parameterized.TestCase):

  @parameterized.product(kind=[*range(len(_KINDS))], layer=(0, 2))
  def test_packed_rows_have_the_states_of_their_sequences(self, kind, layer):
    config = tiny.config(**_KINDS[kind][1])
    params = tiny.params(config)
    tokens = tiny.tokens(config, batch=2, length=5)
    packed = tokens.reshape(1, 10)
    positions = np.tile(np.arange(5), 2)[None]
    segments = np.repeat(np.arange(2), 5)[None]
    got = _find(config, params, packed, layer, positions, segments)
    hidden, after = sites.Site.MLP_HIDDEN, sites.Site.RESIDUAL
    _, want = decoder.forward_with_taps(
        config, params, tokens, sites=(hidden, after))
    np.testing.assert_allclose(
        got.hidden.reshape(2, 5, -1), want[hidden][layer], atol=2e-4)
    np.testing.assert_allclose(
        got.after.reshape(2, 5, -1), want[after][layer], atol=2e-4)
    size = np.ones((2, 5))
    if config.post_norms:
      written = want[hidden][layer] @ params['layers']['mlp']['down'][layer]
      size = np.sqrt(np.square(written).mean(-1) + config.norm_eps)
      self.assertGreater(np.ptp(size), 0.1)
    np.testing.assert_allclose(got.size.reshape(2, 5), size, rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
