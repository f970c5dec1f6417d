"""The nulls of CAD and AS-NC at each precision."""

import types
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.config import run as run_config
from mansu_jax.erasure import readability as readability_lib
from mansu_jax.erasure import suppression
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import copy_back
from mansu_jax.stages.judge import erasure
from mansu_jax.stages.judge import first_token_questions
from mansu_jax.stages.judge import readability
from tests.circuits import small

_CONFIG = small.config()


def _scaled(params, by):
  return jax.tree.map(lambda x: x * by, params)


class MeasureTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    base = jax.tree.map(jnp.asarray, small.params(_CONFIG))
    self.model = types.SimpleNamespace(
        config=_CONFIG, params=base, tokenizer=None)
    self.unlearned = jax.tree.map(jnp.asarray, small.params(_CONFIG, seed=1))
    self.circuit = small.circuit(_CONFIG)
    pairs = small.elicited(_CONFIG, base)
    for name in ('forget_pairs', 'retain_pairs'):
      self.enterContext(mock.patch.object(
          prompt_pairs, name, lambda *args, **kwargs: pairs))
    self.seen = []
    score = eap_ig.score_pairs
    self.enterContext(mock.patch.object(
        eap_ig, 'score_pairs', lambda config, params, *args, **kwargs: (
            self.seen.append(self._name(params)),
            score(config, params, *args, **kwargs))[1]))
    self.control = suppression.Control(
        _scaled(base, 1.5), wanted=0.3, reached=0.3, scale=1.0, change=None)
    self.read = mock.Mock()
    self.read.control.return_value = self.control
    self.read.measure.return_value = {'value': 0.1}
    for module, name, value in (
        (readability, 'Reader', self.read), (copy_back, 'measure', {}),
        (first_token_questions, 'choose', None)):
      self.enterContext(mock.patch.object(
          module, name, lambda *args, value=value, **kwargs: value))

  def views(self):
    """The views of a stand-in for `Quantizers`."""
    return {'fp': lambda params: params,
            'nf4': lambda params: _scaled(params, 0.9),
            'fp4': lambda params: _scaled(params, 0.8)}

  def _name(self, params):
    at = lambda params: float(params['layers']['mlp']['up'][0, 0, 0])
    known = {'base': at(self.model.params), 'unlearned': at(self.unlearned),
             'control': at(self.control.params)}
    for name, value in list(known.items()):
      known |= {f'{name} {scheme}': value * by for scheme, by in (
          ('nf4', 0.9), ('fp4', 0.8))}
    return min(known, key=lambda name: abs(known[name] - at(params)))

  def _measure(self, circuit=None):
    found = types.SimpleNamespace(
        circuit=self.circuit if circuit is None else circuit, means={
            kind: np.ones(shape) for kind, shape in graph.shapes(
                _CONFIG).items()})
    settings = settings_lib.Settings(
        attribution=run_config.AttributionConfig(
            level='neuron_and_head', steps=2),
        circuit=run_config.CircuitConfig())
    return erasure.measure(
        settings, run_config.EvalConfig(bootstrap=100), mock.MagicMock(), self,
        self.model, found, self.unlearned)

  def test_each_precision_has_its_own_quantized_base(self):
    got = self._measure()
    for key, control in (('cad', True), ('as_nc', False)):
      at = {'fp': got[key], **got[key]['by_precision']}
      base = {name: one['nulls']['base_quantized']['value']
              for name, one in at.items()}
      self.assertEqual(base['fp'], base['nf4'])
      self.assertNotEqual(base['fp'], base['fp4'])
      for one in at.values():
        self.assertEqual('suppression' in one['nulls'], control)
    schemes = ('', ' nf4', ' fp4')
    self.assertCountEqual(
        self.seen, 2 * [name + scheme for name in ('base', 'unlearned')
                        for scheme in schemes] + ['control'])

  def test_a_control_that_is_not_matched_is_no_null(self):
    self.control = self.control._replace(reached=0.4)
    self.read.control.return_value = self.control
    got = self._measure()
    self.read.measure.assert_called_once_with(None)
    self.assertNotIn('suppression', got['cad']['nulls'])
    self.assertIs(got['suppression_control']['matched'], False)

  def test_a_matched_control(self):
    got = self._measure()
    self.read.measure.assert_called_once_with(self.control)
    self.assertIs(got['suppression_control']['matched'], True)

  def test_an_unreadable_base_gives_a_reason(self):
    self.read.measure.side_effect = readability_lib.NothingToRead('no layer')
    got = self._measure()
    self.assertEqual(got['readability'], {'reason': 'no layer'})
    self.assertIn('value', got['cad'])

  def test_as_nc_is_empty_for_a_circuit_of_all_nodes(self):
    got = self._measure(graph.Circuit(**{
        kind: np.ones(shape, bool)
        for kind, shape in graph.shapes(_CONFIG).items()}))
    self.assertEqual(got['as_nc'], {})
    self.assertIn('no node lies outside it', got['unmeasured']['as_nc'])
    self.assertNotIn('random_circuits', got['cad']['nulls'])


if __name__ == '__main__':
  absltest.main()
