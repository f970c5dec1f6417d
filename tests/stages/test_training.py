"""Which retain sequences a batch favours."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.data import batching
from mansu_jax.stages import training
from mansu_jax.unlearn import batches
from tests.unlearn import problem


def _pool(states, batch):
  """A pool of which only the base states and the sampler are looked at."""
  spans = batches.Spans(*[None] * 5, reference=states[:, None])
  return batches.Pool(spans=spans, sampler=batching.BatchSampler(
      len(states), batch, 0))


class FavourNearTest(parameterized.TestCase):

  @parameterized.parameters(
      (0.25, 8, 2), (0.1, 4, 1), (0.9, 4, 3), (0.25, 2, 1))
  def test_a_batch_has_some_of_both(self, share, batch, part):
    rng = np.random.default_rng(0)
    towards = np.eye(4)[0] * 9
    retain = rng.normal(size=(40, 4))
    near = [5, 11, 23, 38]  # A tenth.
    retain[near] += towards
    got = training._favour_near(
        problem.options(near_share=share), _pool(retain, batch),
        _pool(rng.normal(size=(30, 4)) + towards, 4))
    firsts = [got.sampler[step][:part] for step in range(8)]
    self.assertEqual(set(np.concatenate(firsts).tolist()), set(near))
    self.assertLen(got.sampler[0], batch)
    rest = np.concatenate([got.sampler[step][part:] for step in range(
        40 // (batch - part))])
    self.assertGreater(len(set(rest.tolist())), 30)  # All the others.

  @parameterized.parameters((0.0, 8), (0.5, 1))
  def test_nothing_is_favoured(self, share, batch):
    pool = _pool(np.eye(5), batch)
    got = training._favour_near(problem.options(near_share=share), pool, pool)
    self.assertIs(got, pool)


if __name__ == '__main__':
  absltest.main()
