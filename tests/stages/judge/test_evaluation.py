"""Measuring both models together equals measuring each separately."""

import dataclasses
import functools
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.data import tokenization
from mansu_jax.models.io import loading
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib
from tests import runs
from tests import tiny_job


class EvaluationTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.config = runs.parse(*tiny_job.make(pathlib.Path(folder) / 'job'))
    cls.model = loading.load(cls.config.model)
    found = inputs_lib.read(cls.config)
    cls.evaluator = evaluation.Evaluator(
        cls.config.eval, cls.config.data, found, cls.model)
    cls.quantize = quantizers.Quantizers(('nf4',), cls.model)

  def _edited(self, *path, layer=None):
    """The model with one leaf changed, in one layer if given."""
    params = jax.tree.map(np.array, self.model.params)
    leaf = params
    for key in path:
      leaf = leaf[key]
    leaf[slice(None) if layer is None else layer] *= 1.5
    return params

  def test_other_prompts_that_do_not_fit_are_no_error(self):
    """Every question fits, but not the longest choice after every prompt."""
    found = inputs_lib.read(self.config)
    first, *others = list({
        q.fact: q for q in found.evaluation['forget_far']
        if q.form == 'far_story'}.values())[:3]
    choices = lambda question, wrong: dataclasses.replace(
        question, choices=(question.answer, wrong))
    asked = [choices(dataclasses.replace(
        first, prompt=f'{"At noon. " * 3}{first.prompt}'), 'tea'), *(
            choices(q, 'the old miller, the priest and the cook')
            for q in others)]
    build = lambda most: evaluation.Evaluator(
        self.config.eval, self.config.data, dataclasses.replace(
            found, evaluation={'forget_far': asked}, heldout_text=[]),
        dataclasses.replace(self.model, config=dataclasses.replace(
            self.model.config, max_position=most)))
    longest = max(one.length for one in tokenization.encode_questions(
        asked, self.model.tokenizer))
    build(longest)
    with self.assertRaisesRegex(ValueError, 'the model supports'):
      build(longest - 2)

  def test_layers_in_common(self):
    count = lambda other: evaluation.layers_in_common(self.model.params, other)
    layers = self.model.config.num_layers
    self.assertEqual(count(self.model.params), layers)
    self.assertEqual(count(self._edited('embed')), 0)
    self.assertEqual(count(self._edited('final_norm')), layers)
    for layer in range(layers):
      for path in (('mlp', 'down'), ('attn', 'k'), ('attn_norm',)):
        self.assertEqual(
            count(self._edited('layers', *path, layer=layer)), layer)

  @parameterized.parameters(0, 1)
  def test_measure_all_equals_separate_measurements(self, layer):
    edited = self._edited('layers', 'mlp', 'up', layer=layer)
    got = evaluation.measure_all(
        self.evaluator, self.quantize.views(), self.model.params, edited)
    views = {'fp': lambda params: params,
             'nf4': functools.partial(self.quantize, 'nf4')}
    self.assertCountEqual(
        got, [(name, view) for name in evaluation.MODELS for view in views])
    for (name, precision), found in got.items():
      params = {'base': self.model.params, 'unlearned': edited}[name]
      alone = self.evaluator(views[precision](params))
      np.testing.assert_allclose(
          found.scores.logprob, alone.scores.logprob, rtol=1e-4)
      for kind, loss in found.texts.items():
        np.testing.assert_allclose(
            loss.window_nll, alone.texts[kind].window_nll, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
