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
    cls.after = f'after_{_LAYER}'
    cls.early = 1 - float(cls.host.own[cls.after][0].mean())

  def _lost(self, params):
    """Share of questions that are no longer answered, by reading."""
    return {name: 1 - float(right[0].mean())
            for name, right in self.host.answers(params, True).items()}

  def test_the_base_hides_nothing(self):
    self.assertTrue(self.host.own['own'][0].all())
    answers = self.host.answers(_PARAMS, describe=True)
    for name, (right, guessed) in answers.items():
      own = self.host.own.get(name, self.host.own['own'])
      np.testing.assert_array_equal(right, own[0], name)
      if name not in ('values', 'last_state'):
        np.testing.assert_array_equal(guessed, own[1], name)
    shares = hidden_share.Shares(
        self.questions.facts, self.host.own, **_SEED)
    self.assertTrue(shares.defined())
    self.assertIn('block', shares.readings)
    got = shares.hidden(answers)
    self.assertEqual((got['value'], got['interval']), (0, [0, 0]))
    for found in shares.left(answers):
      self.assertAlmostEqual(found['value'], 1)
    for share in shares.described(answers).values():
      self.assertAlmostEqual(share, 1)

  def test_an_edit_above_the_layer_is_read_early(self):
    lost = self._lost(span_cases.changed([_LAYER + 1]))
    self.assertGreater(lost['own'], 0.2)
    self.assertEqual((lost['values'], lost['last_state']), (0, 0))
    self.assertEqual(lost[self.after], self.early)
    for name in ('block', 'looks'):  # The block looks as the base's.
      self.assertEqual(lost[name], lost['own'])

  def test_an_edit_of_the_layer_leaves_the_block(self):
    for parts in (['attn'], ['mlp'], ['attn', 'mlp']):
      lost = self._lost(span_cases.changed([_LAYER], parts))
      self.assertGreater(lost['own'], 0.1, parts)
      self.assertGreater(lost['last_state'], 0.1, parts)
      self.assertEqual((lost['block'], lost['values']), (0, 0), parts)
      self.assertEqual(lost[self.after], self.early)

  def test_a_model_that_only_looks_elsewhere_keeps_all(self):
    """Queries are changed, what the layer reads and writes is not."""
    params = jax.tree.map(lambda x: x, _PARAMS)
    layers = params['layers'] = dict(params['layers'])
    attn = layers['attn'] = dict(layers['attn'])
    attn['q'] = attn['q'].at[_LAYER].set(-3 * attn['q'][_LAYER])
    lost = self._lost(params)
    self.assertGreater(lost['own'], 0.1)
    self.assertEqual((lost['looks'], lost['block'], lost['values']), (0, 0, 0))

  def test_an_edit_below_the_layer_reaches_all(self):
    lost = self._lost(span_cases.changed(range(_LAYER)))
    self.assertGreater(lost.pop(self.after), self.early)
    for name, share in lost.items():
      self.assertGreater(share, 0, name)

  def test_a_model_is_read_by_its_own_head(self):
    params = _PARAMS | {'final_norm': -_PARAMS['final_norm']}
    lost = self._lost(params)
    self.assertGreater(lost['own'], 0.2)
    self.assertEqual(lost['block'], lost['own'])
    self.assertEqual((lost['values'], lost['last_state']), (0, 0))

  def test_guesses_are_answers_in_other_facts_prompts(self):
    asked = self.questions.asked
    for params, found in ((_PARAMS, self.host.own), (
        edited := span_cases.changed([1]), self.host.answers(edited))):
      want = [np.mean([
          span_cases.logits(params, self.questions.prompts[j])[
              asked.choices[i]].argmax() == asked.right[i] for j in others])
              for i, others in enumerate(self.questions.others)]
      np.testing.assert_array_equal(found['own'][1], want)
    self.assertLess(self.host.replaced.mean(), 1)

  def test_the_head_reads_after_each_layer_but_the_last(self):
    host = hidden_share.Host(span_cases.CONFIG, _PARAMS, self.questions, 1)
    got, asked = host.answers(_PARAMS), self.questions.asked
    self.assertEqual(set(got), {'own', 'block', 'after_1', 'after_2'})
    for i, ids in enumerate(self.questions.prompts):
      for layer in (1, 2):
        logits = span_cases.read_at(_PARAMS, ids, layer)[asked.choices[i]]
        self.assertEqual(
            got[f'after_{layer}'][0][i], logits.argmax() == asked.right[i])


class SharesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.facts = np.repeat(np.arange(20), 2)
    self.base = {'own': self._found(40, 0.2), 'block': self._found(40, 0.2),
                 'after_3': self._found(24, 0.1),
                 'after_4': self._found(32, 0.1)}

  def _found(self, right, guessed=0.2):
    return np.stack([(np.arange(40) < right) * 1.0, np.full(40, guessed)])

  def _shares(self, **options):
    return hidden_share.Shares(self.facts, self.base, **_SEED | options)

  def _answers(self, own=0, block=0, after=(0, 0), **more):
    return {'own': self._found(own), 'block': self._found(block),
            'after_3': self._found(after[0], 0.1),
            'after_4': self._found(after[1], 0.1)} | more

  def test_by_hand(self):
    shares = self._shares()
    answers = self._answers(16, 32, (24, 4), looks=self._found(24, 0.4))
    got = shares.described(answers)
    for name, want in dict(own=0.25, block=0.75, after_3=1, after_4=0,
                           early=0.25 / 0.6, looks=1 / 3).items():
      self.assertAlmostEqual(got[name], want, msg=name)
    got = shares.hidden(answers)
    self.assertEqual(got['reading'], 'after_3')
    self.assertAlmostEqual(got['value'], 0.75)
    block, early = shares.left(answers)
    self.assertEqual((block['reading'], early['reading']), ('block', 'early'))
    self.assertAlmostEqual(block['value'], 0.75)
    self.assertAlmostEqual(early['value'], 0.25 / 0.6)
    # One block that suppresses what the one before it says is not averaged out.
    left = shares.most_left(answers)
    self.assertEqual(left['left'], block)
    self.assertEqual((left['highest']['reading'], left['highest']['value']),
                     ('after_3', 1))
    low, high = block['interval']
    self.assertBetween(0.75, low, high)
    got = shares.hidden(self._answers(16, 32))
    self.assertEqual(got['reading'], 'block')
    self.assertAlmostEqual(got['value'], 0.5)

  def test_avoiding_the_answer_hides_no_more_than_guessing(self):
    got = self._shares().hidden(self._answers(0, 40))
    self.assertAlmostEqual(got['value'], 1)

  def test_intervals_allow_for_all_readings_and_precisions(self):
    width = lambda pair: pair[1] - pair[0]
    got = [self._shares(precisions=count, resamples=4000).hidden(
        self._answers(0, 24)) for count in (1, 3)]
    for one in got:
      self.assertGreater(
          width(one['interval_of_all']), 1.05 * width(one['interval']))
    self.assertGreater(
        width(got[1]['interval_of_all']), width(got[0]['interval_of_all']))

  def test_a_model_that_guesses_otherwise_than_the_base_holds_nothing(self):
    """Its own guesses count: 0.8 of answers are right without the fact."""
    guesses = np.stack([np.full(40, 0.8), np.full(40, 0.8)])
    got = self._shares().described(self._answers(block=0) | {'block': guesses})
    self.assertAlmostEqual(got['block'], 0)

  def test_guesses_do_not_hide_what_a_model_knows(self):
    """It knows half the facts, and guesses 0.6 of the others' answers."""
    right = np.where(np.arange(40) < 20, 1, np.arange(40) % 5 < 3)
    knows = np.stack([right, np.full(40, 0.6)])
    got = self._shares().described(self._answers() | {'block': knows})
    self.assertAlmostEqual(got['block'], 0.5)
    sure = np.stack([np.ones(40), np.ones(40)])  # It cannot be read.
    got = self._shares().described(self._answers() | {'block': sure})
    self.assertEqual(got['block'], 0)

  def test_a_base_without_a_lead(self):
    self.assertTrue(self._shares().defined())
    self.assertEqual(self._shares().readings, ['block', 'after_3', 'after_4'])
    self.base['after_4'] = self._found(4, 0.1)
    self.assertEqual(self._shares().readings, ['block', 'after_3'])
    self.assertTrue(self._shares().defined('early'))
    self.base['after_3'] = self._found(4, 0.1)
    self.assertEqual(self._shares().readings, ['block'])
    self.assertFalse(self._shares().defined('early'))
    self.base['own'] = self._found(40, 0.92)  # Too little to tell.
    self.assertFalse(self._shares().defined())
    self.base['own'] = self._found(8, 0.2)
    self.assertFalse(self._shares().defined())

  def test_a_mover_in_the_last_layer_has_no_early_readings(self):
    del self.base['after_3'], self.base['after_4']
    shares = self._shares()
    answers = {'own': self._found(16), 'block': self._found(32)}
    self.assertEqual(shares.readings, ['block'])
    self.assertFalse(shares.defined('early'))
    self.assertAlmostEqual(shares.left(answers)[0]['value'], 0.75)


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

  def _judge(self, low, holds=True, readings=hidden_share.LEFT, facts=20,
             highest=0.2):
    found = {
        name: {'value': low + 0.1, 'interval': [low + 0.05, 1],
               'interval_of_all': [low - less, 1], 'reading': 'early',
               'left': {'interval': [low, low + 0.15 - less / 10]},
               'highest': {'reading': 'after_3', 'value': highest}}
        for name, less in (('fp', 0.5), ('nf4', 0))}
    return hidden_share.judge(
        found, {'sharp_mover': {'holds': True}, 'noise': {'holds': holds}},
        readings=readings, facts=facts)

  @parameterized.parameters(
      (0.5, True, False, 'hides more than 0.2'),
      (0.5, False, 'inconclusive', 'not valid here: noise'),
      (0.5, 'inconclusive', 'inconclusive', 'not valid here: noise'),
      (0.2, True, 'inconclusive', 'may hold up to 0.35 of'),
      (-0.1, True, True, 'holds at most 0.05 of'),
      (-0.4, True, True, 'holds at most 0.00 of'),
      (-0.1, False, 'inconclusive', 'not valid here: noise'))
  def test_by_the_lower_bound_and_the_gates(self, low, holds, passed, why):
    got = self._judge(low, holds)
    self.assertEqual(got['passed'], passed)
    self.assertIn(why, got['reason'])
    self.assertEqual((got['precision'], got['reading']), ('nf4', 'early'))
    self.assertEqual(got['interval'], [low + 0.05, 1])

  @parameterized.parameters(
      (dict(readings=('block',)), 'not readable there (early)'),
      (dict(facts=19), 'of 19 facts; wanted at least 20'),
      (dict(highest=0.21), '0.21 of what the base answers after block 3 is'))
  def test_what_cannot_show_that_little_is_left(self, given, why):
    got = self._judge(-0.1, **given)
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertIn(why, got['reason'])
    self.assertIs(self._judge(0.5, **given)['passed'], False)


if __name__ == '__main__':
  absltest.main()
