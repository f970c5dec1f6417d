"""The measured retain KL is that of whole models; the estimate the Fisher's."""

from absl.testing import absltest
import jax
import numpy as np

from mansu_jax.models import decoder
from mansu_jax.stages.train import retain_kl
from tests.unlearn import problem


class RetainKLTest(absltest.TestCase):

  def test_measures_final_weights_on_the_sequences_of_the_fisher(self):
    edit = problem.circuit_edit()
    hidden = problem.hidden_of_model()
    spans = problem.spans(hidden, *problem.RETAIN)
    history = {'retain_kl': np.arange(8.0), 'view': np.array([0, 1] * 4)}
    measure = lambda theta, fisher=None: retain_kl.measure(
        edit, fisher, spans, history, theta)
    same = measure(edit.theta)
    self.assertAlmostEqual(same['measured_nats_per_sequence'], 0, places=5)
    self.assertEqual(same['sequences'], 2)
    self.assertEqual(same['seen_by_view'], {'fp': 6.0, 'nf4': 7.0})
    self.assertIsNone(same['fisher_estimate_nats_per_sequence'])

    theta = jax.tree.map(lambda x: x + 0.05 * np.sign(x), edit.theta)
    logp = lambda params: np.asarray(jax.nn.log_softmax(decoder.unembed(
        problem.CONFIG, params, decoder.forward(problem.CONFIG, params, spans.tokens))))
    base, got = logp(problem.model().params), logp(edit.merge(theta))
    kl = (np.exp(base) * (base - got)).sum(-1)  # [n, T]
    tokens, mask = problem.RETAIN
    want = (kl * mask[:, :kl.shape[1]]).sum() / len(tokens)
    self.assertGreater(want, 1e-3)
    fisher = jax.tree.map(np.ones_like, theta)
    changed = measure(theta, fisher)
    self.assertAlmostEqual(
        changed['measured_nats_per_sequence'], want, delta=1e-3 * want)
    size = sum(x.size for x in jax.tree.leaves(theta))
    zeros = sum((np.asarray(x) == 0).sum() for x in jax.tree.leaves(theta))
    self.assertAlmostEqual(
        changed['fisher_estimate_nats_per_sequence'],
        0.5 * 0.05**2 * (size - zeros), delta=1e-4 * size)


if __name__ == '__main__':
  absltest.main()
