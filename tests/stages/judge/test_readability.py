"""Questions to ask and to fit on, the matched control, and copying back."""

import dataclasses
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.erasure import copy_back as copy_back_lib
from mansu_jax.erasure import lens
from mansu_jax.erasure import readability as readability_lib
from mansu_jax.stages.judge import copy_back
from mansu_jax.stages.judge import first_token_questions
from mansu_jax.stages.judge import readability
from mansu_jax.stages.prepare import inputs as inputs_lib
from tests.circuits import small
from tests.eval import toy_model

_TOKENIZER = toy_model.ToyTokenizer()
_RESAMPLING = dict(resamples=200, seed=0)
_WORDS = ('ab', 'cd', 'ef', 'gh', 'ij', 'kl')


def _question(i, use, choices=None):
  choices = choices or tuple(np.roll(_WORDS[:3 + i % 2], i))
  return questions_lib.Question(
      id=f'{use}{i}', fact=f'f{i // 2}', relation='r', use=use,
      prompt=f'{_WORDS[i % 5]} {_WORDS[(i * 3) % 4]}', answer=choices[0],
      choices=tuple(map(str, choices)))


def _inputs(retain=12, near=10, far=6, extra=()):
  evaluation = dict.fromkeys(splits_lib.NAMES, ()) | {
      'forget_paraphrase': [_question(i, 'near') for i in range(near)]
      + list(extra),
      'forget_far': [_question(i, 'far') for i in range(far)]}
  splits = splits_lib.Splits(
      forget_train=[], evaluation=evaluation, text=[],
      retain_train=[_question(i, 'train') for i in range(retain)])
  return inputs_lib.Inputs(
      splits=splits, evaluation=evaluation, heldout_text=[], calibration=[],
      hashes={})


def _choose(inputs, tokenizer=_TOKENIZER, limit=320):
  return first_token_questions.choose(
      inputs, tokenizer, limit=limit, seed=0, chat=False)


def _rounded(params, donate=()):
  """A view; what is donated to it is gone."""
  out = jax.tree.map(jnp.round, params)
  for name in donate:
    tree_paths.flatten(params)[name].delete()
  return out


class QuestionsTest(parameterized.TestCase):

  def test_all_phrasings_that_were_not_trained(self):
    got = _choose(_inputs())
    self.assertLen(got.prompts, 16)
    self.assertLen(got.fit, 12)
    self.assertEqual(got.asked.counts.tolist(), [3, 4] * 8)
    for row, count in zip(got.asked.choices, got.asked.counts):
      self.assertLen(set(row[:count].tolist()), count)
      np.testing.assert_array_equal(row[count:], row[0])
    np.testing.assert_array_equal(got.asked.right, 0)
    self.assertEqual(got.facts[:4].tolist(), ['f0', 'f0', 'f1', 'f1'])

  def test_choices_of_one_first_token_are_left_out(self):
    same = dataclasses.replace(
        _question(0, 'near'), id='same', choices=('ab', 'ab cd', 'ef'),
        answer='ab')
    got = _choose(_inputs(extra=[same]))
    self.assertEqual((len(got.prompts), got.left_out), (16, 1))

  def test_limit_sets_the_number_of_questions(self):
    got = _choose(_inputs(), limit=9)
    self.assertLen(got.fit, 9)

  @parameterized.parameters(
      (dict(limit=0), {}, 'eval_lens_questions=0'),
      ({}, dict(retain=3), 'there are 3 retain questions'),
      ({}, dict(near=0, far=0), 'there are 0 forget questions'))
  def test_too_few_questions_are_refused(self, options, data, want):
    with self.assertRaisesRegex(first_token_questions.NothingToRead, want):
      _choose(_inputs(**data), None if 'near' in data else _TOKENIZER,
              **options)


class ReaderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    config = small.config(vocab_size=64)
    self.base = jax.tree.map(jnp.asarray, small.params(config))
    self.other = jax.tree.map(jnp.asarray, small.params(config, seed=1))
    self.model = types.SimpleNamespace(
        config=config, params=self.base, tokenizer=_TOKENIZER)
    self.inputs = _inputs()
    self.circuit = small.circuit(config)
    self.views = {'fp': lambda params, donate=(): params, 'nf4': _rounded}

  def _ask_what_it_knows(self):
    """Makes what the base answers the right answers."""
    asked = _choose(self.inputs)
    said = iter(self._reader(self.base).picks('base', 'fp')[-1])
    self.assertLen(asked.prompts, 16)
    known = lambda split: [
        dataclasses.replace(q, answer=q.choices[next(said)])
        for q in self.inputs.evaluation[split]]
    evaluation = dict(self.inputs.evaluation) | {
        split: known(split) for split in ('forget_paraphrase', 'forget_far')}
    self.inputs = dataclasses.replace(self.inputs, evaluation=evaluation)

  def _reader(self, unlearned):
    return readability.Reader(
        _choose(self.inputs), self.model, unlearned, self.views, **_RESAMPLING)

  def _copy_back(self, reader, randoms, precisions, halves=(), moved=()):
    return copy_back.measure(
        reader, self.circuit, randoms,
        copy_back_lib.Halves(list(halves), list(moved)), precisions,
        **_RESAMPLING)

  def test_answered_compares_first_token_logits(self):
    asked = _choose(self.inputs)
    states = lens.states(self.model.config, self.other, asked.prompts)
    logits = states.final @ np.asarray(self.other['embed']).T
    want = [max(row[:n], key=lambda t, i=i: logits[i, t]) == row[r]
            for i, (row, r, n) in enumerate(zip(*asked.asked))]
    reader = self._reader(self.other)
    np.testing.assert_array_equal(reader.answered(self.other, 'fp'), want)
    np.testing.assert_array_equal(
        reader.picks('unlearned', 'fp')[-1] == asked.asked.right, want)

  @parameterized.parameters(0, 1)
  def test_control_matches_the_share_of_answers(self, pairs):
    pair = pairs_lib.AttributionPair((3, 4), (5, 4), 6, 7, fact='f')
    reader = self._reader(self.other)
    control = reader.control([pair] * pairs)
    self.assertEqual(control.wanted, reader.answered(self.other, 'fp').mean())
    got = reader.answered(control.params, 'fp').mean()
    self.assertAlmostEqual(got, control.reached, delta=1e-6)

  def test_each_model_is_run_once(self):
    self._ask_what_it_knows()
    runs, parts = [], []
    states, above = lens.states, lens.UpperLayers.__call__
    with mock.patch.object(lens, 'states', lambda *args: (
        runs.append(args[1]), states(*args))[1]), (
            mock.patch.object(lens.UpperLayers, '__call__', lambda *args: (
                parts.append(args[1]), above(*args))[1])):
      reader = self._reader(self.other)
      control = reader.control([])
      reader.measure(control)
      edited = self._copy_back(reader, [], ('fp', 'nf4'))
    self.assertIs(edited['confined'], False)
    # Base and unlearned at two precisions, and two parts undone at both.
    self.assertLen(runs, 4)
    self.assertLen(parts, 4)

  def test_a_base_at_chance_is_refused(self):
    with self.assertRaisesRegex(
        readability_lib.NothingToRead, 'the best layer of the base answers'):
      self._reader(self.base).measure(None)

  def test_readability_of_the_base_is_one(self):
    self._ask_what_it_knows()
    reader = self._reader(self.base)
    control = reader.control([])
    got = reader.measure(control)
    self.assertEqual(got['value'], 1.0)
    self.assertEqual(tuple(got['by_precision']), ('nf4',))
    self.assertEqual(tuple(got['by_layer']), (
        'base', 'unlearned', 'base_quantized', 'suppression'))
    self.assertEqual((got['fitted_on'], got['left_out']), (12, 0))

  def test_an_edit_of_the_circuit_alone(self):
    edited = copy_back._copy(self.base, self.other, self.circuit)
    self.assertFalse(copy_back._equal(edited, self.base))
    first, second = (
        graph.Circuit(**{kind: self.circuit[kind] & (
            np.arange(self.circuit[kind].shape[1]) % 2 == odd)
                         for kind in graph.KINDS}) for odd in (0, 1))
    reader = self._reader(edited)
    got = self._copy_back(
        reader, [], ('fp',), [first, second, second], [0.6, 0.4, 0.4])
    self.assertIs(got['confined'], True)
    parts = got['by_precision']['fp']
    self.assertEqual(parts['circuit']['answered'], parts['base']['answered'])
    self.assertEqual(parts['rest']['answered'], parts['unlearned']['answered'])
    for name, undone in (('best_half', first), ('random_half_0', second),
                         ('random_half_1', second)):
      self.assertEqual(
          parts[name]['answered'], reader.answered(
              copy_back._copy(edited, self.base, undone), 'fp').mean(), name)

  def test_best_half_share_if_only_it_undoes_the_edit(self):
    edited = copy_back._copy(self.base, self.other, self.circuit)
    reader = self._reader(edited)
    nothing = graph.empty(self.model.config)
    with mock.patch.object(reader, 'correct', side_effect=lambda picks: (
        np.full(16, picks is reader.picks('base', 'fp')))), (
            mock.patch.object(reader, 'answered', side_effect=(
                lambda params, _: np.full(
                    16, copy_back._equal(params, self.base))))):
      got = self._copy_back(
          reader, [], ('fp',), [self.circuit, nothing, nothing],
          [1.0, 0.0, 0.0])
    self.assertEqual(got['moved'], {
        'best_half': 1.0, 'random_half_0': 0.0, 'random_half_1': 0.0})
    self.assertEqual(got['by_precision']['fp']['best_half']['share'], 1.0)
    self.assertEqual(got['by_precision']['fp']['random_half_1']['share'], 0.0)
    self.assertEqual(got['best_half_less_random']['fp'], {
        'share': 1.0, 'interval': [1.0, 1.0], 'as_much': 0})

  def test_an_edit_of_everything(self):
    random = small.random_circuit(self.model.config, 0.5)
    reader = self._reader(self.other)
    got = self._copy_back(reader, [random], ('fp', 'nf4'))
    self.assertIs(got['confined'], False)
    for precision, view in (('fp', lambda params: params), ('nf4', _rounded)):
      parts = got['by_precision'][precision]
      answered = lambda params: reader.answered(
          view(params), precision).mean()
      for name, params in (
          ('circuit', copy_back._copy(self.other, self.base, self.circuit)),
          ('rest', copy_back._copy(self.base, self.other, self.circuit)),
          ('random_0', copy_back._copy(self.other, self.base, random))):
        self.assertEqual(parts[name]['answered'], answered(params), name)

  def test_a_copy_shares_all_but_the_circuit(self):
    copy = copy_back._copy(self.base, self.other, self.circuit)
    self.assertCountEqual(
        readability._new_leaves(copy, [self.base, self.other]), [
            'layers/attn/k', 'layers/attn/o', 'layers/attn/q', 'layers/attn/v',
            'layers/mlp/down', 'layers/mlp/gate', 'layers/mlp/up'])
    nothing = copy_back._copy(
        self.base, self.other, graph.empty(self.model.config))
    self.assertEqual(
        readability._new_leaves(nothing, [self.base, self.other]), [])

  def test_copying_everything_back_is_the_base(self):
    everything = graph.Circuit(**{
        kind: np.ones_like(self.circuit[kind]) for kind in graph.KINDS})
    got = copy_back._copy(self.other, self.base, everything)
    jax.tree.map(
        np.testing.assert_array_equal, got['layers']['mlp'],
        self.base['layers']['mlp'])
    np.testing.assert_array_equal(got['embed'], self.other['embed'])


if __name__ == '__main__':
  absltest.main()
