"""The suppression control hides the selected answers and nothing else."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.erasure import lens
from mansu_jax.erasure import suppression
from mansu_jax.models import decoder
from tests.circuits import small

_CONFIG = small.config(d_ff=96)
_PARAMS = small.params(_CONFIG)


def _asked(prompts):
  """The likeliest token of each prompt, among three; it is answered."""
  states = lens.states(_CONFIG, _PARAMS, prompts)
  logits = np.asarray(decoder.unembed(_CONFIG, _PARAMS, states.final))
  order = logits.argsort(1)
  choices = np.stack([order[:, 0], order[:, -1], order[:, 1], order[:, 0]], 1)
  size = len(prompts)
  return states, suppression.Asked(
      choices.astype(np.int32), np.ones(size, np.int32),
      np.full(size, 3, np.int32))


def _prompts(num, seed):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 29, 6).tolist() for _ in range(num)]


def _answered(params, states, asked):
  return np.asarray(suppression.answered(
      _CONFIG, params, states.layers[:, -1], asked))


class SuppressionTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.prompts, cls.others = _prompts(24, 0), _prompts(24, 1)
    cls.hide, cls.asked = _asked(cls.prompts)
    cls.keep = lens.states(_CONFIG, _PARAMS, cls.others)

  def _make(self, wanted, match=None):
    return suppression.make(
        _CONFIG, _PARAMS, hide=self.hide, asked=self.asked, keep=self.keep,
        match=np.ones(24, bool) if match is None else match, wanted=wanted)

  def test_answered_by_hand(self):
    right = _answered(_PARAMS, self.hide, self.asked)
    self.assertTrue(right.all())
    wrong = self.asked._replace(right=np.zeros(24, np.int32))
    self.assertFalse(_answered(_PARAMS, self.hide, wrong).any())

  def test_padding_choices_do_not_count(self):
    # Filled up with the first choice, which is the right one here.
    first = suppression.Asked(
        self.asked.choices[:, [1, 0, 1, 1]], np.zeros(24, np.int32),
        np.full(24, 2, np.int32))
    self.assertTrue(_answered(_PARAMS, self.hide, first).all())

  @parameterized.parameters(0.25, 0.5, 0.75)
  def test_control_answers_the_wanted_share(self, wanted):
    control = self._make(wanted)
    states = lens.states(_CONFIG, control.params, self.prompts)
    got = _answered(control.params, states, self.asked).mean()
    self.assertAlmostEqual(got, wanted, delta=1.01 / 24)
    self.assertAlmostEqual(got, control.reached, delta=1.01 / 24)
    self.assertEqual(control.wanted, wanted)

  def test_control_matches_only_the_selected_questions(self):
    match = np.arange(24) < 8
    control = self._make(0.5, match)
    states = lens.states(_CONFIG, control.params, self.prompts)
    got = _answered(control.params, states, self.asked)
    self.assertAlmostEqual(got[match].mean(), 0.5, delta=1.01 / 8)

  def test_only_the_last_down_projection_changes(self):
    control = self._make(0.25)
    down = control.params['layers']['mlp']['down']
    self.assertFalse(np.array_equal(down[-1], _PARAMS['layers']['mlp'][
        'down'][-1]))
    restored = control.params['layers'] | {'mlp': control.params['layers'][
        'mlp'] | {'down': down.at[-1].set(
            _PARAMS['layers']['mlp']['down'][-1])}}
    jax.tree.map(np.testing.assert_array_equal,
                 control.params | {'layers': restored}, _PARAMS)

  def test_kept_states_hardly_move(self):
    control = self._make(0.25)
    moved = lambda prompts, before: np.linalg.norm(lens.states(
        _CONFIG, control.params, prompts).layers[:, -1] - before.layers[:, -1])
    self.assertLess(
        moved(self.others, self.keep), 0.05 * moved(self.prompts, self.hide))

  def test_states_equal_a_full_run(self):
    control = self._make(0.25)
    want = lens.states(_CONFIG, control.params, self.prompts)
    got = suppression.states(_CONFIG, _PARAMS, control, self.hide)
    for one, other in zip(got, want):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

  def test_states_before_the_last_mlp_do_not_change(self):
    control = self._make(0.25)
    after = lens.states(_CONFIG, control.params, self.prompts)
    np.testing.assert_array_equal(
        after.layers[:, :-1], self.hide.layers[:, :-1])
    np.testing.assert_array_equal(after.last, self.hide.last)


if __name__ == '__main__':
  absltest.main()
