"""The hidden share: edits with known shares, hand numbers, and verdicts."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.erasure import hidden_share
from tests.erasure import span_cases

_PARAMS, _LAYER = span_cases.PARAMS, span_cases.LAYER
_SEED = dict(resamples=200, seed=0)


class HostTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.questions = span_cases.questions(num=20)
    cls.host = hidden_share.Host(
        span_cases.CONFIG, _PARAMS, cls.questions, _LAYER)

  def _lost(self, params):
    """Share of questions that are no longer answered, by reading."""
    return {name: 1 - float(right.mean())
            for name, right in self.host.answers(params).items()}

  def test_the_base_hides_nothing(self):
    self.assertTrue(self.host.own.all())
    answers = self.host.answers(_PARAMS)
    self.assertEqual(
        {name: x.all() for name, x in answers.items()},
        dict.fromkeys(('own', *hidden_share.READINGS), True))
    shares = hidden_share.Shares(
        self.questions.facts, self.host.own, self.host.ignorance, **_SEED)
    for name, got in shares.judged(answers, answers['own']).items():
      self.assertEqual(got['reading'], name)
      self.assertEqual(got['value'], 0)
      self.assertEqual(got['interval'], [0, 0])
    for share in shares.described(answers).values():
      self.assertAlmostEqual(share, 1)

  def test_an_edit_above_the_layer_is_read_out(self):
    lost = self._lost(span_cases.changed([_LAYER + 1]))
    self.assertGreater(lost['own'], 0.2)
    self.assertEqual(
        (lost['read_out'], lost['values'], lost['last_state']), (0, 0, 0))
    self.assertEqual(lost['routed'], lost['own'])  # It looks as the base does.

  def test_an_edit_of_the_layers_attention_leaves_its_values(self):
    lost = self._lost(span_cases.changed([_LAYER], ['attn']))
    self.assertGreater(lost['own'], 0.2)
    self.assertGreater(lost['last_state'], 0.2)
    self.assertEqual(lost['values'], 0)

  def test_a_model_that_only_looks_elsewhere_keeps_all_when_routed(self):
    """Queries are changed, what the layer reads and writes is not."""
    params = jax.tree.map(lambda x: x, _PARAMS)
    layers = params['layers'] = dict(params['layers'])
    attn = layers['attn'] = dict(layers['attn'])
    attn['q'] = attn['q'].at[_LAYER].set(-3 * attn['q'][_LAYER])
    lost = self._lost(params)
    self.assertGreater(lost['own'], 0.1)
    self.assertEqual(
        (lost['routed'], lost['read_out'], lost['values']), (0, 0, 0))

  def test_an_edit_below_the_layer_reaches_both(self):
    lost = self._lost(span_cases.changed(range(_LAYER)))
    for name in ('own', *hidden_share.READINGS):
      self.assertGreater(lost[name], 0, name)

  def test_own_answers_are_read_by_the_models_own_head(self):
    params = _PARAMS | {'final_norm': -_PARAMS['final_norm']}
    lost = self._lost(params)
    self.assertGreater(lost['own'], 0.2)
    self.assertEqual((lost['values'], lost['last_state']), (0, 0))

  def test_answers_in_other_facts_prompts(self):
    asked = self.questions.asked
    want = [np.mean([
        span_cases.logits(_PARAMS, self.questions.prompts[j])[
            asked.choices[i]].argmax() == asked.right[i] for j in others])
            for i, others in enumerate(self.questions.others)]
    np.testing.assert_array_equal(self.host.elsewhere, want)
    np.testing.assert_array_equal(  # What the blocks above the layer read.
        self.host.others['read_out'], self.host.others['last_state'])
    for share in (self.host.ignorance, *self.host.others.values()):
      self.assertTrue(set(share.tolist()) <= {0, 0.5, 1})
      self.assertLess(share.mean(), 1)


class SharesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.facts = np.repeat(np.arange(20), 2)
    self.base, self.ignorance = np.ones(40), np.full(40, 0.2)

  def _shares(self, **options):
    return hidden_share.Shares(
        self.facts, self.base, self.ignorance, **_SEED | options)

  def _answers(self, routed, last_state=0, read_out=0):
    answered = lambda count: (np.arange(40) < count) * 1.0
    return {'routed': answered(routed), 'read_out': answered(read_out),
            'values': answered(40), 'last_state': answered(last_state)}

  def test_by_hand(self):
    shares, own = self._shares(), (np.arange(40) < 16) * 1.0
    answers = self._answers(32, 24, read_out=40)
    got = shares.described(answers)
    self.assertAlmostEqual(got['values'], 1)
    self.assertAlmostEqual(got['last_state'], 0.5)
    self.assertAlmostEqual(got['routed'], 0.75)
    self.assertAlmostEqual(shares.share(own), 0.25)
    got = shares.judged(answers, own)
    self.assertAlmostEqual(got['read_out']['value'], 0.75)
    self.assertAlmostEqual(got['routed']['value'], 0.5)
    low, high = got['routed']['interval']
    self.assertBetween(0.5, low, high)
    self.assertAlmostEqual(shares.judged(answers)['routed']['value'], 0.75)

  def test_avoiding_the_answer_hides_no_more_than_ignorance(self):
    got = self._shares().judged(self._answers(40), np.zeros(40))
    self.assertAlmostEqual(got['routed']['value'], 1)

  def test_intervals_allow_for_several_tests(self):
    width = lambda pair: pair[1] - pair[0]
    got = self._shares(tests=5, resamples=4000).judged(
        self._answers(24), np.zeros(40))['routed']
    self.assertGreater(
        width(got['interval_of_all']), 1.05 * width(got['interval']))

  def test_each_reading_has_its_floor(self):
    """Other facts' states leave some answers to values, none more here."""
    floors = {'routed': np.full(40, 0.5), 'values': np.full(40, 0.9),
              'last_state': np.full(40, 0.2), 'read_out': np.full(40, 0.6)}
    shares = hidden_share.Shares(
        self.facts, self.base, self.ignorance, floors, **_SEED)
    got = shares.described(self._answers(20, 8, 24))
    for name in ('routed', 'last_state', 'read_out'):
      self.assertAlmostEqual(got[name], 0)
    got = shares.judged(self._answers(40))['routed']
    self.assertAlmostEqual(got['value'], 1)
    self.assertAlmostEqual(shares.share(np.full(40, 0.6)), 0.5)  # Its own.
    for name in hidden_share.JUDGED:
      self.assertFalse(hidden_share.Shares(
          self.facts, self.base, self.ignorance,
          floors | {name: np.ones(40)}, **_SEED).defined)

  def test_a_base_without_a_lead(self):
    self.assertTrue(self._shares().defined)
    self.base = np.full(40, 0.2)
    self.assertFalse(self._shares().defined)


class NoiseTest(absltest.TestCase):

  def test_it_moves_the_same_weights_as_far(self):
    edited = span_cases.changed([1, 2], ['mlp'])
    got = hidden_share.noise_like(_PARAMS, edited, seed=0)
    self.assertIs(got['embed'], _PARAMS['embed'])
    change = lambda params: np.concatenate([np.ravel(x) for x in (
        jax.tree.leaves(jax.tree.map(jnp.subtract, params, _PARAMS)))])
    ours, theirs = change(got), change(edited)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-6)
    self.assertLess(
        abs(ours @ theirs) / (theirs @ theirs), 0.2)
    other = hidden_share.noise_like(_PARAMS, edited, seed=1)
    self.assertFalse(np.array_equal(change(other), ours))


class JudgeTest(parameterized.TestCase):

  @parameterized.parameters(
      (0.5, True, False, 'hides more than 0.2'),
      (0.5, False, 'inconclusive', 'not valid here: noise'),
      (0.5, 'inconclusive', 'inconclusive', 'not valid here: noise'),
      (0.2, True, 'inconclusive', 'may hold up to 0.35 of'),
      (-0.1, True, True, 'holds at most 0.05 of'),
      (-0.1, False, 'inconclusive', 'not valid here: noise'))
  def test_by_the_lower_bound_and_the_gates(self, low, holds, passed, why):
    found = {
        name: {'value': low + 0.1, 'interval': [low + 0.05, 1],
               'interval_of_all': [low - less, 1],
               'left': {'interval': [low, low + 0.15 - less / 10]}}
        for name, less in (('fp', 0.5), ('nf4', 0))}
    got = hidden_share.judge(
        found, {'sharp_mover': {'holds': True}, 'noise': {'holds': holds}})
    self.assertEqual(got['passed'], passed)
    self.assertIn(why, got['reason'])
    self.assertEqual(got['precision'], 'nf4')
    self.assertEqual(got['interval'], [low + 0.05, 1])


if __name__ == '__main__':
  absltest.main()
