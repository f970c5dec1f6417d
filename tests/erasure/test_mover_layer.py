"""The mover layer: replaced states against ordinary runs, and its rule."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from mansu_jax.erasure import mover_layer
from mansu_jax.erasure import spans
from tests.erasure import span_cases

_CONFIG, _PARAMS = span_cases.CONFIG, span_cases.PARAMS


class LogitsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.questions = span_cases.questions()
    self.batch, = spans.batches_of(self.questions)
    self.logits = np.asarray(mover_layer.logits_by_layer(
        _CONFIG, _PARAMS, self.batch.rows, self.batch.others[0]))

  def test_each_layer_is_a_run_on_replaced_states(self):
    for i, ids in enumerate(self.questions.prompts):
      other = self.questions.prompts[self.questions.others[i, 0]]
      choices = self.questions.asked.choices[i]
      want = [span_cases.logits(_PARAMS, ids)[choices]]
      for layer in range(_CONFIG.num_layers):
        x = span_cases.before(_PARAMS, ids, layer)
        x[0, 1:-1] = span_cases.before(_PARAMS, other, layer)[0, 1:-1]
        want.append(span_cases.after(_PARAMS, x, layer, choices))
      np.testing.assert_allclose(self.logits[i], want, rtol=1e-4, atol=1e-5)

  def test_before_the_first_layer_it_is_the_other_facts_run(self):
    for i, row in enumerate(self.questions.others[:, 0]):
      np.testing.assert_allclose(
          self.logits[i, 1], span_cases.logits(
              _PARAMS, self.questions.prompts[row])[
                  self.questions.asked.choices[i]], rtol=1e-4, atol=1e-5)

  def test_find_reads_a_known_mover(self):
    # Only layer 1 moves anything between tokens.
    attn = dict(_PARAMS['layers']['attn'])
    attn['o'] = attn['o'] * jnp.array([0, 20, 0, 0]).reshape(-1, 1, 1, 1)
    params = _PARAMS | {'layers': _PARAMS['layers'] | {'attn': attn}}
    found = mover_layer.find(
        _CONFIG, params, span_cases.questions(params, num=20))
    self.assertEqual(found.layer, 1)
    self.assertTrue(found.sharp)
    np.testing.assert_allclose(found.removed, [1, 1, 0, 0], atol=1e-5)


class LocateTest(parameterized.TestCase):

  @parameterized.parameters(
      ([2, 0, 0.4, 1.6], 1, True),
      ([2, 0, 0.4, 1.5], 1, False),
      ([2, 0, 0, 0], 2, True),  # Nothing follows the last layer.
      ([2, 0, 0.6, 1.5], 1, False),  # Layer 0 removes most, layer 1 drops most.
      ([2, 0, 2, 0], 2, True),
      ([1, -1, -1, 1], 1, True))
  def test_by_hand(self, leads, layer, sharp):
    got = mover_layer.locate(leads)
    self.assertEqual((got.layer, got.sharp), (layer, sharp))
    self.assertEqual(got.removed[0], 1)

  @parameterized.parameters(([1, 1, 1],), ([0, 1, 1],))
  def test_without_a_lead(self, leads):
    with self.assertRaisesRegex(mover_layer.NoLead, 'no answer'):
      mover_layer.locate(leads)


if __name__ == '__main__':
  absltest.main()
