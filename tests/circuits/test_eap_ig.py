"""EAP-IG node scores against the golden values of other implementations."""

import dataclasses
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import pair_batches
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models import decoder
from tests.circuits import golden
from tests.circuits import small


@absltest.skipUnless(golden.EXISTS, golden.MISSING)
class TinyLlamaTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model, cls.pairs, cls.want = golden.tiny_llama()
    (cls.batch,) = pair_batches.pack(cls.pairs, len(cls.pairs))

  def _scores(self, batches, steps):
    return eap_ig.score_pairs(
        self.model.config, self.model.params, batches, steps=steps)

  @parameterized.parameters(5, 20)
  @pytest.mark.medium
  def test_neurons_and_heads_match(self, steps):
    got = self._scores([self.batch], steps)
    self.assertLess(golden.largest(
        got.neurons.mean(0), self.want[f'neuron_eap_ig{steps}']), 1e-5)
    self.assertLess(golden.largest(
        got.heads.mean(0), self.want[f'head_eap_ig{steps}']), 1e-5)

  def test_single_pairs_match(self):
    got = self._scores([self.batch], 5)
    self.assertLess(golden.largest(
        got.neurons, self.want['neuron_eap_ig5_per_pair']), 1e-5)

  def test_metrics_match(self):
    got = self._scores([self.batch], 1)
    np.testing.assert_allclose(
        got.metric_clean, self.want['metric_clean'], atol=1e-4)
    np.testing.assert_allclose(
        got.metric_corrupt, self.want['metric_corrupt'], atol=1e-4)

  @pytest.mark.medium
  def test_packed_pairs_score_as_single_pairs(self):
    pairs = [dataclasses.replace(
        p, clean_ids=p.clean_ids[:size], corrupt_ids=p.corrupt_ids[:size])
             for p, size in zip(self.pairs, itertools.cycle((2, 3, 4, 5)))]
    batches = pair_batches.pack(pairs, 3)
    self.assertLen(batches, 3)
    got = self._scores(batches, 3)
    for i, pair in enumerate(pairs):
      (alone,) = pair_batches.pack([pair], 1)
      want = jax.tree.map(lambda x: x[0], self._scores([alone], 3))
      for field in ('neurons', 'heads', 'metric_clean', 'metric_corrupt'):
        self.assertLess(golden.largest(
            getattr(got, field)[i], getattr(want, field)), 1e-4)

  def test_key_value_head_sums_over_its_group(self):
    got = self._scores([self.batch], 1)
    means = eap_ig.node_means(got, self.model.config)
    np.testing.assert_allclose(
        means['kv_heads'][:, 0], means['heads'][:, :2].sum(1), rtol=1e-5)

  @pytest.mark.medium
  def test_many_steps_are_complete_in_the_input_gradient(self):
    # Sum of (e - e') . mean gradient tends to the metric difference.
    config, params = self.model.config, self.model.params
    embed = lambda t: decoder.embed(config, params, t)
    packed = {'positions': self.batch.positions,
              'segments': self.batch.segments}
    start, path = embed(self.batch.corrupt), (
        embed(self.batch.clean) - embed(self.batch.corrupt))

    def metric(e):
      hidden = decoder.forward(config, params, embeddings=e, **packed)
      return eap_ig.metric(config, params, hidden, self.batch).sum()

    grad = jax.jit(jax.grad(metric))
    total = sum(np.sum(path * grad(start + k / 100 * path))
                for k in range(100))
    change = metric(start + path) - metric(start)
    self.assertLess(abs(total / 100 / change - 1), 0.05)


class TokenRolesTest(absltest.TestCase):

  def _packed(self, *changed):
    """Prompts of 6, 6 and 3 tokens that differ in some, and their roles."""
    pairs = []
    for fact, (length, some) in enumerate(zip((6, 6, 3), changed)):
      corrupt = tuple(9 if i in some else 5 for i in range(length))
      pairs.append(pairs_lib.AttributionPair(
          (5,) * length, corrupt, 1, 2, fact=str(fact)))
    (batch,) = pair_batches.pack(pairs, 3)
    token_roles = np.asarray(eap_ig.token_roles(jax.device_put(batch)))
    letter = lambda i: '-' if i < 0 else eap_ig.TOKEN_ROLES[i][0]
    return batch, [''.join(map(letter, token_roles[batch.segments == own]))
                   for own in range(3)]

  def test_token_roles_by_hand(self):
    _, got = self._packed((1, 3), (4, 5), (2,))
    # c(hanged), a(fter) and l(ast).
    self.assertEqual(got, ['-cccal', '----cl', '--l'])

  def test_token_role_sums_equal_node_sums_in_any_packing(self):
    cfg = small.config()
    params, pairs = small.params(cfg), small.pairs()
    score = lambda pairs, **how: eap_ig.score_pairs(
        cfg, params, pair_batches.pack(pairs, 3, **how), steps=2)
    got = score(pairs)
    self.assertEqual(got.token_roles.shape, (3, 2, 2, 3))
    for part, nodes in enumerate((got.heads, got.neurons)):
      np.testing.assert_allclose(
          got.token_roles[:, :, part].sum(-1), nodes.sum(-1), rtol=1e-3,
          atol=1e-6)
    np.testing.assert_allclose(
        score(pairs, one_per_row=True).token_roles, got.token_roles, rtol=1e-3,
        atol=1e-6)

  def test_scores_before_the_change_are_0(self):
    cfg = small.config()
    first = small.pairs()[1]
    same = dataclasses.replace(
        first, corrupt_ids=first.clean_ids[:2] + first.corrupt_ids[2:])
    got = eap_ig.score_pairs(
        cfg, small.params(cfg), pair_batches.pack([same], 1), steps=2)
    # Whose sums hold what stands before the change as well.
    for part, nodes in enumerate((got.heads, got.neurons)):
      np.testing.assert_allclose(
          got.token_roles[:, :, part].sum(-1), nodes.sum(-1), rtol=1e-3,
          atol=1e-6)
    self.assertTrue((got.token_roles[:, 0, :, 0] != 0).all())


class KeepAnsweredTest(absltest.TestCase):

  def _scores(self, clean, corrupt):
    zeros = np.zeros((len(clean), 1, 1))
    return eap_ig.PairScores(
        zeros, zeros, np.array(clean), np.array(corrupt), zeros)

  def test_pairs_answered_wrongly_are_dropped(self):
    kept, mask = eap_ig.keep_answered(self._scores([1., -2., 3.], [-1.] * 3))
    np.testing.assert_array_equal(mask, [True, False, True])
    self.assertLen(kept.metric_clean, 2)

  def test_prompts_that_do_not_elicit_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'do not elicit the knowledge'):
      eap_ig.keep_answered(self._scores([1., -2.], [3., 3.]))

  def test_swapped_answers_are_named(self):
    with self.assertRaisesRegex(ValueError, r'answer swapped\? .*do not el'):
      eap_ig.keep_answered(self._scores([-1., -2.], [3., 3.]))
    with self.assertRaisesRegex(ValueError, r'prompts; wanted clean above'
                                r' corrupted\. These'):
      eap_ig.keep_answered(self._scores([-1., -2.], [-1., -1.]))


if __name__ == '__main__':
  absltest.main()
